"""A model's name that no model has, by every way in: a typed refusal, and no more of it is kept than a line holds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from tests.fakes.inference import infer_request, streamed
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request
from tests.fakes.tokenizer_tier import FakeTokenizerTier
from tests.fakes.web_caller import FORMS, WebCaller
from tokenwire.errors import InvalidRequest, TokenwireError
from tokenwire.kserve import inference_pb2, inference_pb2_grpc
from tokenwire.logs import JsonFormatter, ReadableFormatter
from tokenwire.requests import MAX_MODEL_CHARS
from tokenwire.status import from_rpc_error, from_wire
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

LONG = "m" * 2_000_000
Ask = Callable[[LiveGateway, str], Awaitable[TokenwireError]]


async def failed(call: Any) -> TokenwireError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return from_rpc_error(caught.value)


async def by_generate(live: LiveGateway, model: str) -> TokenwireError:
    return await failed(live.stub.Generate(generate_request("one", model=model)))


async def by_chat(live: LiveGateway, model: str) -> TokenwireError:
    return await failed(live.stub.Chat(gateway_pb2.ChatRequest(model=model)))


async def by_tokenize(live: LiveGateway, model: str) -> TokenwireError:
    return await failed(live.stub.Tokenize(tokenizer_pb2.TokenizeRequest(model=model, texts=["a"])))


async def by_embed(live: LiveGateway, model: str) -> TokenwireError:
    return await failed(live.stub.Embed(tokenizer_pb2.EmbedRequest(model=model, texts=["a"])))


async def by_get_tokenizer(live: LiveGateway, model: str) -> TokenwireError:
    return await failed(live.stub.GetTokenizer(tokenizer_pb2.GetTokenizerRequest(model=model)))


async def by_session(live: LiveGateway, model: str) -> TokenwireError:
    call = live.stub.Session()
    await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
    request = tokenizer_pb2.TextRequest(text="one", model=model)
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
    await call.done_writing()
    (finish,) = [finish async for frame in call for finish in frame.finishes]
    return from_wire(finish.error)


async def by_infer(live: LiveGateway, model: str) -> TokenwireError:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
    return await failed(stub.ModelInfer(infer_request("one", model_name=model)))


async def by_infer_stream(live: LiveGateway, model: str) -> TokenwireError:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
    answers = [answer async for answer in stub.ModelStreamInfer(iter([streamed("one", model_name=model)]))]
    (answer,) = answers
    assert answer.ByteSize() < 2000
    field = answer.error_message.partition(":")[0]
    return InvalidRequest.of(field, answer.error_message.partition(": ")[2])


async def by_model_metadata(live: LiveGateway, model: str) -> TokenwireError:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
    return await failed(stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name=model)))


def by_http(path: str, **body: Any) -> Ask:
    async def ask(live: LiveGateway, model: str) -> TokenwireError:
        answer = await live.http.post(path, json={"model": model, **body})
        assert answer.status_code == 400 and len(answer.content) < 2000
        error = answer.json()["error"]
        return InvalidRequest.of(error["param"], error["message"].partition(": ")[2])

    return ask


async def by_model_path(live: LiveGateway, model: str) -> TokenwireError:
    answer = await live.http.get(f"/v1/models/{quote(model[:20_000])}")
    assert answer.status_code == 400 and len(answer.content) < 2000
    return InvalidRequest.of(answer.json()["error"]["param"], answer.json()["error"]["message"].partition(": ")[2])


def by_web(form: str) -> Ask:
    async def ask(live: LiveGateway, model: str) -> TokenwireError:
        result = await WebCaller(live.http, form).call("Generate", generate_request("one", model=model))
        assert result.error is not None
        return result.error

    return ask


WAYS: dict[str, Ask] = {
    "Generate": by_generate, "Chat": by_chat, "Tokenize": by_tokenize, "Embed": by_embed, "Session": by_session,
    "GetTokenizer": by_get_tokenizer, "ModelInfer": by_infer, "ModelStreamInfer": by_infer_stream,
    "ModelMetadata": by_model_metadata, "/v1/models": by_model_path,
    "/v1/completions": by_http("/v1/completions", prompt="one"),
    "/v1/chat/completions": by_http("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}]),
    "/generate": by_http("/generate", inputs="one"),
    "/v1/embeddings": by_http("/v1/embeddings", input="one"),
    **{form: by_web(form) for form in FORMS},
}  # fmt: skip
FIELDS = {"ModelInfer": "model_name", "ModelStreamInfer": "model_name", "ModelMetadata": "name"}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_refused_at_once_and_written_down_nowhere(way: str, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(tier: FakeTokenizerTier, live: LiveGateway) -> TokenwireError:
        error = await WAYS[way](live, LONG)
        assert not tier.requests
        return error

    async def main() -> TokenwireError:
        async with gateway_over_fake() as (tier, live):
            return await ask(tier, live)

    caplog.set_level(logging.INFO)
    error = asyncio.run(main())
    assert isinstance(error, InvalidRequest), error
    assert [violation.field for violation in error.violations] == [FIELDS.get(way, "model")]
    assert f"at most {MAX_MODEL_CHARS} characters" in error.message and len(error.message) < 200
    ours = [record for record in caplog.records if record.name.startswith(("gateway", "tokenwire"))]
    assert any(record.getMessage() == "request finished" for record in ours)
    for record in ours:
        for formatter in (JsonFormatter("gateway"), ReadableFormatter("gateway")):
            assert len(formatter.format(record)) < 1000


def test_the_longest_name_is_looked_up_and_told_by_its_beginning() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            await by_generate(live, "m" * MAX_MODEL_CHARS)
            answer = await live.http.get("/v1/models/" + "m" * MAX_MODEL_CHARS)
            assert answer.status_code == 404 and len(answer.content) < 300

    asyncio.run(main())
