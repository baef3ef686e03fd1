"""Embed over gRPC: what passes through, what is refused here, and who goes elsewhere."""

import asyncio

import grpc
import pytest

from tests.fakes.live_gateway import gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tokenwire.errors import DeadlineExceeded, InvalidRequest, Overloaded
from tokenwire.status import from_rpc_error
from tokenwire.v1 import tokenizer_pb2


def test_a_call_passes_through_with_its_context() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            request = tokenizer_pb2.EmbedRequest(
                texts=["a b", "c"], options={"dimensions": 2}, context={"request_id": "mine", "tenant": "t"},
                truncation={"side": 1, "max_tokens": 3}, split_special_tokens=True,
            )  # fmt: skip
            call = live.stub.Embed(request, timeout=5)
            response = await call
            assert [e.values[1] for e in response.embeddings] == [2, 1] and response.usage.prompt_tokens == 3
            assert ("x-request-id", "mine") in list(await call.initial_metadata())
            (sent,) = tier.embeds
            assert (sent.context.request_id, sent.context.tenant) == ("mine", "t")
            assert 0 < sent.context.timeout_ms <= 5000
            assert sent.truncation == request.truncation and sent.split_special_tokens
            assert live.count("grpc.embed", "ok") == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        (tokenizer_pb2.EmbedRequest(), InvalidRequest, "texts"),
        (tokenizer_pb2.EmbedRequest(texts=["a", ""]), InvalidRequest, "texts[1]"),
        (tokenizer_pb2.EmbedRequest(token_ids=[{}]), InvalidRequest, "token_ids[0]"),
        (tokenizer_pb2.EmbedRequest(texts=["a"] * 21), InvalidRequest, "prompts"),
        (tokenizer_pb2.EmbedRequest(texts=["!bad"]), InvalidRequest, "texts[0]"),
        (tokenizer_pb2.EmbedRequest(texts=["a"], context={"priority": 101}), InvalidRequest, "context.priority"),
    ],
)
def test_what_is_refused(request_, kind, field: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=20) as (_, live):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Embed(request_)
            error = from_rpc_error(caught.value)
            assert type(error) is kind and [v.field for v in error.violations] == [field]

    asyncio.run(main())


def test_time_limits_and_room() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=4, default_timeout_s=0.3) as (tier, live):
            hang = tokenizer_pb2.EmbedRequest(texts=["!hang"] * 4)
            first = asyncio.ensure_future(live.stub.Embed(hang))
            await tier.until(lambda: tier.num_embedding == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Embed(tokenizer_pb2.EmbedRequest(texts=["a"]))
            assert isinstance(from_rpc_error(caught.value), Overloaded)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await first  # the default limit
            assert isinstance(from_rpc_error(caught.value), DeadlineExceeded)
            await live.stub.Embed(tokenizer_pb2.EmbedRequest(texts=["a"] * 4))
            call = live.stub.Embed(hang, timeout=60)
            await tier.until(lambda: tier.num_embedding == 1)
            call.cancel()
            await tier.until(lambda: tier.num_embedding == 0)

    asyncio.run(main())


def test_a_lost_tier_is_replaced_by_another() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await live.until(lambda: all(b.ready for b in live.server.backends.tiers))
            call = asyncio.ensure_future(live.stub.Embed(tokenizer_pb2.EmbedRequest(texts=["!hang"])))
            await live.until(lambda: one.num_embedding + two.num_embedding == 1)
            first, second = (one, two) if one.num_embedding else (two, one)
            await first.kill()
            await second.until(lambda: second.num_embedding == 1)
            call.cancel()

    asyncio.run(main())
