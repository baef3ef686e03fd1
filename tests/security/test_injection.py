"""What a client writes adds nothing to the head of an answer, and begins no line of a log in any tier."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.inference import infer_request
from tests.fakes.live_gateway import generate_request
from tests.fakes.live_model_tier import RawSession, token_request
from tests.fakes.live_tokenizer_tier import TextPeer, text_request
from tests.fakes.web_caller import FORMS, WebCaller
from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.errors import TokenwireError
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.logs import JsonFormatter, ReadableFormatter
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

HOSTILE = "a\r\nset-cookie: forged=1\r\n\r\n00:00:00.000 info    gateway   forged\x1b[2J\x1b]0;x\x07\u2028\u202e\x85\0"
QUOTED = "a%0d%0aset-cookie:%20forged=1%0d%0a%0d%0a%1b%5b2J%00"
ONE_LINE = "a\tset-cookie: forged=1\x80\xff"
"""What may stand in a header of HTTP, and steers some terminals."""


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    user = {"role": "user", "content": HOSTILE}
    tool = {"type": "function", "function": {"name": HOSTILE, "parameters": {HOSTILE: HOSTILE}}}
    more: list[dict[str, Any]] = [
        {}, {"model": HOSTILE}, {HOSTILE: 1}, {"user": HOSTILE}, {"stop": HOSTILE}, {"metadata": {HOSTILE: HOSTILE}},
        {"response_format": {"type": HOSTILE}}, {"logit_bias": {HOSTILE: 1}}, {"service_tier": HOSTILE},
        {"structured_outputs": {"regex": f"({HOSTILE}"}}, {"structured_outputs": {"grammar": HOSTILE}},
    ]  # fmt: skip
    for fields in more:
        yield "/v1/completions", {"prompt": HOSTILE, "max_tokens": 1, **fields}
        yield "/v1/chat/completions", {"messages": [user], "max_tokens": 1, **fields}
        yield "/v1/embeddings", {"input": HOSTILE, **fields}
        yield "/generate", {"inputs": HOSTILE, "parameters": {"max_new_tokens": 1}, **fields}
    for fields in ({"tools": [tool]}, {"tool_choice": HOSTILE}, {"chat_template_kwargs": {HOSTILE: HOSTILE}}):
        yield "/v1/chat/completions", {"messages": [user], "max_tokens": 1, **fields}
    yield "/v1/chat/completions", {"messages": [{"role": HOSTILE, HOSTILE: HOSTILE}]}


async def raw(stack: WholeStack, head: str, body: bytes = b"") -> str:
    """What the HTTP port answers, to the last byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.server.http.port)
    length = f"Host: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write((head + length).encode("latin-1") + body)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer.decode("latin-1")


def head_of(answer: str) -> list[str]:
    return answer.partition("\r\n\r\n")[0].lower().split("\r\n")[1:]


async def over_http(stack: WholeStack) -> None:
    answers = []
    names = ("x-request-id", "traceparent", "authorization", "user-agent", "origin", "content-type", "accept")
    for path, body in bodies():
        head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n"
        answers.append(await raw(stack, head, json.dumps(body).encode()))
    for name in names:
        head = f"POST /v1/completions HTTP/1.1\r\n{name}: {ONE_LINE}\r\n"
        answers.append(await raw(stack, head, b'{"prompt": "a", "max_tokens": 1}'))
    for path in (f"/{QUOTED}", f"/v1/models/{QUOTED}", f"/page/{QUOTED}", f"/v1/completions?{QUOTED}={QUOTED}",
                 f"/tokenwire.v1.GenerationService/{QUOTED}"):  # fmt: skip
        for method in ("GET", "POST", "OPTIONS", "FORGED"):
            answers.append(await raw(stack, f"{method} {path} HTTP/1.1\r\n"))
    assert len(answers) > 60 and all(answer.startswith("HTTP/1.1 ") for answer in answers)
    for answer in answers:
        assert not [line for line in head_of(answer) if line.startswith("set-cookie") or "\x1b" in line], answer
        assert not [line for line in head_of(answer) if "forged" in line and not line.startswith("x-request-id: ")], (
            answer
        )


async def over_the_web(stack: WholeStack) -> None:
    for form in FORMS:
        result = await WebCaller(stack.gateway.http, form).call("Generate", generate_request("a", model=HOSTILE))
        assert result.error is not None and "forged" in result.error.message


async def over_grpc(stack: WholeStack) -> None:
    live = stack.gateway
    kinds = ({"tenant": HOSTILE}, {"request_id": HOSTILE}, {"traceparent": HOSTILE}, {"cache_salt": HOSTILE})
    contexts = [common_pb2.RequestContext(**kind) for kind in kinds if set(kind) <= set(FIELDS)]
    options = [common_pb2.GenerationOptions(adapter=HOSTILE), common_pb2.GenerationOptions()]
    options[1].constraint.json_schema = HOSTILE
    requests: list[Any] = [generate_request(HOSTILE, context=context) for context in contexts]
    requests += [generate_request(HOSTILE, options=each) for each in options]
    for request in requests:
        request.options.stop.max_tokens = 1
        with suppress(grpc.aio.AioRpcError):
            assert [answer async for answer in live.stub.Generate(request)]
    chat = gateway_pb2.ChatRequest(conversation={"messages": [{"role": HOSTILE, "content": HOSTILE}]})
    chat.options.stop.max_tokens = 1
    with suppress(grpc.aio.AioRpcError):
        assert [answer async for answer in live.stub.Chat(chat)]
    with suppress(grpc.aio.AioRpcError):
        await inference_pb2_grpc.GRPCInferenceServiceStub(live.channel).ModelInfer(
            infer_request(HOSTILE, id=HOSTILE, parameters={"max_tokens": 1})
        )


FIELDS = common_pb2.RequestContext.DESCRIPTOR.fields_by_name


async def at_the_inner_tiers(stack: WholeStack) -> None:
    peer = await TextPeer.open(stack.tokenizer)
    await peer.submit(1, text_request(HOSTILE, tenant=HOSTILE, request_id=HOSTILE))
    await peer.end(1)
    peer.call.cancel()
    session = await RawSession.open(stack.model.stub)
    await session.submit({1: token_request([5], tenant=HOSTILE, request_id=HOSTILE)})
    await session.read_until_finished(1)
    session.call.cancel()
    with suppress(grpc.aio.AioRpcError, TokenwireError):
        await stack.tokenizer.stub.Tokenize(tokenizer_pb2.TokenizeRequest(model=HOSTILE, texts=[HOSTILE]))
    greeting = common_pb2.Hello(protocol_version=1, peer=HOSTILE)
    for stub, request in ((stack.tokenizer.stub, tokenizer_pb2.SessionRequest(hello=greeting)),):
        call = stub.Session(iter([request]))
        with suppress(grpc.aio.AioRpcError):
            assert [frame async for frame in call]


@pytest.mark.parametrize("way", [over_http, over_the_web, over_grpc, at_the_inner_tiers], ids=lambda way: way.__name__)
def test_nothing_is_forged(trained_folder: Path, way: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with whole_stack(trained_folder) as stack:
            await way(stack)
            await stack.until_idle()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert len(caplog.records) > 10
    for record in caplog.records:
        readable = ReadableFormatter("gateway").format(record)
        assert all(
            row.isprintable() and (not number or row[:2] == "  ") for number, row in enumerate(readable.split("\n"))
        )
        assert len(JsonFormatter("gateway").format(record).splitlines()) == 1
