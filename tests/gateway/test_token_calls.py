"""Calls that only tokenize, detokenize or count, at a running gateway: what passes, how much, and what it costs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.fakes.live_gateway import LiveGateway, gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tests.fakes.web_caller import FORMS, WebCaller
from tokenwire.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2
from tokenwire.v1 import tokenizer_pb2 as pb

WAYS = ("grpc", *FORMS)
each_way = pytest.mark.parametrize("way", WAYS)


def caller(live: LiveGateway, way: str) -> Callable[[str, Any], Awaitable[Any]]:
    """Calls a method one way or another; raises the error that it is told."""

    async def over_grpc(method: str, request: Any) -> Any:
        try:
            return await getattr(live.stub, method)(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def over_web(method: str, request: Any) -> Any:
        (answer,) = (await WebCaller(live.http, way).call(method, request)).or_raise()
        return answer

    return over_grpc if way == "grpc" else over_web


def conversations(number: int) -> pb.CountTokensRequest:
    return pb.CountTokensRequest(conversations=[{"messages": [{"role": "user", "content": "a"}]}] * number)


MANY: list[tuple[str, Callable[[int], Any], str]] = [
    ("Tokenize", lambda number: pb.TokenizeRequest(texts=[""] * number), "texts"),
    ("Detokenize", lambda number: pb.DetokenizeRequest(sequences=[{}] * number), "sequences"),
    ("CountTokens", lambda number: pb.CountTokensRequest(texts=[""] * number), "texts"),
    ("CountTokens", conversations, "conversations"),
]


@each_way
def test_more_items_than_the_gateway_takes_in_one_call_are_refused_by_name(way: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_prompts=4) as (tier, live):
            call = caller(live, way)
            for method, request, field in MANY:
                await call(method, request(4))
                with pytest.raises(InvalidRequest) as caught:
                    await call(method, request(5))
                (violation,) = caught.value.violations
                assert violation.field == field
                assert "5" in violation.description and "at most 4" in violation.description
            assert tier.num_token_calls == len(MANY), "what is refused is not passed on"

    asyncio.run(main())


COSTLY: list[tuple[str, Any]] = [
    ("Tokenize", pb.TokenizeRequest(texts=["a" * 2000, "b" * 2000])),
    ("CountTokens", pb.CountTokensRequest(texts=["a" * 4000])),
    ("ApplyChatTemplate", pb.ApplyChatTemplateRequest(
        conversation={"messages": [{"role": "user", "content": "a" * 4000}]}
    )),
    ("Detokenize", pb.DetokenizeRequest(sequences=[{"ids": [1] * 600}, {"ids": [2] * 400}])),
]  # fmt: skip


@each_way
@pytest.mark.parametrize(("method", "request_"), COSTLY, ids=[method for method, _ in COSTLY])
def test_what_is_tokenized_is_charged_as_a_tenants_tokens(way: str, method: str, request_: Any) -> None:
    """A thousand tokens each, of a bucket that holds fifteen hundred."""

    async def main() -> None:
        async with gateway_over_fake(tenant_tokens_per_min=1500.0) as (tier, live):
            call = caller(live, way)
            await call(method, request_)
            with pytest.raises(Overloaded) as caught:
                await call(method, request_)
            assert caught.value.reason == "TENANT_TOKENS_PER_MIN"
            assert (caught.value.retry_after_s or 0) > 1
            assert tier.num_token_calls == 1

    asyncio.run(main())


def test_a_small_call_costs_little() -> None:
    async def main() -> None:
        async with gateway_over_fake(tenant_tokens_per_min=1500.0) as (tier, live):
            for _ in range(20):
                await live.stub.Tokenize(pb.TokenizeRequest(texts=["a b"]))
            assert tier.num_token_calls == 20

    asyncio.run(main())


def test_what_passes_through() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            encoded = await live.stub.Tokenize(pb.TokenizeRequest(texts=["a b", "c"]))
            assert [list(e.token_ids) for e in encoded.encodings] == [[0, 1], [0]]
            sequences = [common_pb2.TokenIds(ids=[1, 2])]
            decoded = await live.stub.Detokenize(pb.DetokenizeRequest(sequences=sequences))
            assert list(decoded.texts) == ["t1 t2"]
            models = await live.stub.ListModels(pb.ListModelsRequest())
            assert [card.name for card in models.models] == [MODEL]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Tokenize(pb.TokenizeRequest())
            assert [v.field for v in from_rpc_error(caught.value).violations] == ["texts"]

    asyncio.run(main())


def test_the_token_api_passes_through_whole_and_its_errors_too() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            conversation = pb.Conversation(messages=[{"role": "user", "content": "a b"}])
            request = pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=True)
            rendered = await live.stub.ApplyChatTemplate(request)
            assert (rendered.text, list(rendered.token_ids)) == ("a b", [0, 1, 2])
            counted = await live.stub.CountTokens(pb.CountTokensRequest(texts=["a b", "c"]))
            assert (list(counted.texts), counted.max_context_tokens) == ([2, 1], 64)
            pieces = [piece async for piece in live.stub.GetTokenizer(pb.GetTokenizerRequest())]
            assert [piece.content for piece in pieces] == [b"", b"x", b"y"] and pieces[0].files[0].name == "a"
            stream = live.stub.StreamDetokenize()
            for ids, end in (([1, 2], False), ([3], True)):
                await stream.write(pb.StreamDetokenizeRequest(handle=5, token_ids=ids, end=end))
                answer = await stream.read()
                assert (answer.handle, answer.text, answer.end) == (5, "".join(f"t{i} " for i in ids), end)
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert live.count("grpc.streamdetokenize", "ok") == 1
            for method in (live.stub.GetTokenizer, None):
                if method is not None:
                    call = method(pb.GetTokenizerRequest(model="gone"))
                else:
                    call = live.stub.StreamDetokenize()
                    await call.write(pb.StreamDetokenizeRequest(model="gone"))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert type(from_rpc_error(caught.value)) is NotFound
            await tier.kill()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.GetTokenizer(pb.GetTokenizerRequest()).read()
            assert type(from_rpc_error(caught.value)) is Unavailable

    asyncio.run(main())


def test_a_stream_that_sends_nonsense_is_answered_by_name() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            call = live.channel.stream_stream("/tokenwire.v1.GenerationService/StreamDetokenize")()
            await call.write(b"\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert from_rpc_error(caught.value).reason == "MALFORMED_MESSAGE"

    asyncio.run(main())
