"""Nothing runs for a client that has gone, or whose time is up: counted in steps of the engine, through all tiers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.inference import infer_request, is_final, streamed
from tests.fakes.live_gateway import generate_request
from tests.fakes.web_caller import PATH, envelope
from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

STEP_MS = 60.0
MAX_STEPS = 2
LONG = {"max_tokens": 4000, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hello"}], **LONG}

Leave = Callable[[], Awaitable[None]]


def long_options() -> common_pb2.GenerationOptions:
    options = common_pb2.GenerationOptions()
    options.stop.max_tokens, options.stop.ignore_eos = 4000, True
    return options


async def http_client(
    stack: WholeStack, path: str, body: dict[str, Any] | bytes, *, half_close: bool = False, kind: str = "json"
) -> Leave:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.server.http.port)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{kind}\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()

    async def leave() -> None:
        if half_close:
            writer.write_eof()
            await reader.read(-1)
        writer.close()
        await writer.wait_closed()

    return leave


async def streaming_chat(stack: WholeStack) -> Leave:
    return await http_client(stack, "/v1/chat/completions", {**CHAT, "stream": True})


async def whole_chat(stack: WholeStack) -> Leave:
    return await http_client(stack, "/v1/chat/completions", CHAT)


async def half_closed_chat(stack: WholeStack) -> Leave:
    return await http_client(stack, "/v1/chat/completions", CHAT, half_close=True)


async def many_inputs(stack: WholeStack) -> Leave:
    return await http_client(stack, "/generate", {"inputs": ["hello", "you", "all"], **LONG})


async def connect_stream(stack: WholeStack) -> Leave:
    request = generate_request("hello", options=long_options()).SerializeToString()
    return await http_client(stack, PATH + "Generate", envelope(request), kind="connect+proto")


async def half_closed_grpc_web(stack: WholeStack) -> Leave:
    request = generate_request("hello", options=long_options()).SerializeToString()
    return await http_client(stack, PATH + "Generate", envelope(request), kind="grpc-web", half_close=True)


async def grpc_call(stack: WholeStack) -> Leave:
    call = stack.gateway.stub.Generate(generate_request("hello", options=long_options()))
    await call.read()

    async def leave() -> None:
        call.cancel()

    return leave


async def grpc_chat(stack: WholeStack) -> Leave:
    conversation = tokenizer_pb2.Conversation(messages=[tokenizer_pb2.ChatMessage(role="user", content="hello")])
    call = stack.gateway.stub.Chat(gateway_pb2.ChatRequest(conversation=conversation, options=long_options()))
    await call.read()

    async def leave() -> None:
        call.cancel()

    return leave


async def inference(stack: WholeStack) -> Leave:
    """Has no answer before its end."""
    call = inferences(stack).ModelInfer(infer_request("hello", parameters=LONG))

    async def leave() -> None:
        call.cancel()

    return leave


async def streamed_inference(stack: WholeStack) -> Leave:
    call = inferences(stack).ModelStreamInfer()
    for number in range(3):
        await call.write(streamed("hello", id=str(number), parameters=LONG))
    await call.read()

    async def leave() -> None:
        call.cancel()

    return leave


async def grpc_channel(stack: WholeStack) -> Leave:
    channel = grpc.aio.insecure_channel(stack.gateway.grpc_target)
    call = channel.unary_stream(
        "/tokenwire.v1.GenerationService/Generate",
        request_serializer=lambda message: message.SerializeToString(),
    )(generate_request("hello", options=long_options()))
    await call.read()

    async def leave() -> None:
        await channel.close()

    return leave


async def grpc_session(stack: WholeStack, *, cancel: bool) -> Leave:
    call = stack.gateway.stub.Session()
    await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
    await call.read()
    request = tokenizer_pb2.TextRequest(text="hello", options=long_options())
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
    await call.read()

    async def leave() -> None:
        if cancel:
            await call.write(tokenizer_pb2.SessionRequest(cancels=[common_pb2.Cancel(handle=1)]))
        else:
            call.cancel()

    return leave


async def session_that_breaks(stack: WholeStack) -> Leave:
    return await grpc_session(stack, cancel=False)


async def session_that_cancels(stack: WholeStack) -> Leave:
    return await grpc_session(stack, cancel=True)


WAYS = [
    streaming_chat, whole_chat, half_closed_chat, many_inputs, connect_stream, half_closed_grpc_web, inference,
    grpc_call, grpc_chat, grpc_channel, streamed_inference, session_that_breaks, session_that_cancels,
]  # fmt: skip
WAITING = WAYS[:7]
"""Those that can come and wait, without an answer."""


def inferences(stack: WholeStack) -> Any:
    return inference_pb2_grpc.GRPCInferenceServiceStub(stack.gateway.channel)


async def until_running(stack: WholeStack) -> None:
    async with asyncio.timeout(20):
        while not stack.model.tier.engine.load.running or stack.model.num_steps < 3:
            await asyncio.sleep(0.002)


async def steps_until_idle(stack: WholeStack) -> int:
    """Of the engine, from now until it has nothing left."""
    before = stack.model.num_steps
    await stack.until_idle()
    await asyncio.sleep(2 * STEP_MS / 1000)  # a step that ran on would be reported by then
    return stack.model.num_steps - before


@pytest.mark.parametrize("come", WAYS, ids=[way.__name__ for way in WAYS])
def test_the_engine_stops_within_two_steps(come: Any, trained_folder: Path) -> None:
    async def main() -> None:
        async with whole_stack(trained_folder, mock_step_ms=STEP_MS) as stack:
            leave = await come(stack)
            await until_running(stack)
            await leave()
            assert await steps_until_idle(stack) <= MAX_STEPS

    asyncio.run(main())


@pytest.mark.parametrize("come", WAITING, ids=[way.__name__ for way in WAITING])
def test_what_waits_for_a_client_that_has_gone_never_runs(come: Any, trained_folder: Path) -> None:
    async def main() -> None:
        async with whole_stack(trained_folder, mock_step_ms=STEP_MS, max_batch_size=1) as stack:
            leave_first = await streaming_chat(stack)
            await until_running(stack)
            leave = await come(stack)
            async with asyncio.timeout(10):
                while not stack.model.tier.engine.backlog.num_queued:
                    await asyncio.sleep(0.002)
            await leave()
            async with asyncio.timeout(10):
                while stack.model.tier.engine.backlog.num_queued or stack.gateway.server.backends.num_open > 1:
                    await asyncio.sleep(0.002)
            assert stack.model.tier.engine.load.running == 1
            await leave_first()
            assert await steps_until_idle(stack) <= MAX_STEPS

    asyncio.run(main())


LIMIT_S = 10 * STEP_MS / 1000

TimedOut = Callable[[WholeStack], Awaitable[bool]]
"""Asks for more than there is time for; whether the answer says that the time was up."""


async def timeout_over_http(stack: WholeStack) -> bool:
    response = await stack.gateway.http.post("/generate", json={"inputs": "hello", **LONG, "timeout": LIMIT_S})
    output = response.json()["outputs"][0]
    return output["finish_reason"] == "deadline" and output["usage"]["completion_tokens"] > 0


async def timeout_of_a_chat(stack: WholeStack) -> bool:
    response = await stack.gateway.http.post("/v1/chat/completions", json={**CHAT, "timeout": LIMIT_S})
    return response.status_code == 504


async def timeout_of_a_streamed_chat(stack: WholeStack) -> bool:
    asked = {**CHAT, "timeout": LIMIT_S, "stream": True}
    return "deadline_exceeded" in (await stack.gateway.http.post("/v1/chat/completions", json=asked)).text


async def default_timeout(stack: WholeStack) -> bool:
    response = await stack.gateway.http.post("/generate", json={"inputs": "hello", **LONG})
    return bool(response.json()["outputs"][0]["finish_reason"] == "deadline")


async def deadline_of_grpc(stack: WholeStack) -> bool:
    call = stack.gateway.stub.Generate(generate_request("hello", options=long_options()), timeout=LIMIT_S)
    *_, last = [response async for response in call]
    return bool(last.finish.reason == common_pb2.FINISH_REASON_DEADLINE)


async def timeout_of_a_session(stack: WholeStack) -> bool:
    call = stack.gateway.stub.Session()
    await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
    await call.read()
    context = common_pb2.RequestContext(timeout_ms=round(1000 * LIMIT_S))
    request = tokenizer_pb2.TextRequest(text="hello", options=long_options(), context=context)
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
    while not (frame := await call.read()).finishes:
        pass
    call.cancel()
    return bool(frame.finishes[0].reason == common_pb2.FINISH_REASON_DEADLINE)


async def deadline_of_an_inference(stack: WholeStack) -> bool:
    try:
        await inferences(stack).ModelInfer(infer_request("hello", parameters=LONG), timeout=LIMIT_S)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return False


async def timeout_of_a_streamed_inference(stack: WholeStack) -> bool:
    call = inferences(stack).ModelStreamInfer()
    await call.write(streamed("hello", parameters={**LONG, "timeout": round(LIMIT_S * 1e6)}))
    while not (response := await call.read()).error_message and not is_final(response.infer_response):
        pass
    call.cancel()
    return "time" in response.error_message


OUT_OF_TIME: list[TimedOut] = [
    timeout_over_http, timeout_of_a_chat, timeout_of_a_streamed_chat, default_timeout, deadline_of_grpc,
    timeout_of_a_session, deadline_of_an_inference, timeout_of_a_streamed_inference,
]  # fmt: skip


@pytest.mark.parametrize("ask", OUT_OF_TIME, ids=lambda ask: ask.__name__)
def test_time_that_is_up_stops_the_engine(ask: TimedOut, trained_folder: Path) -> None:
    """The limit is the engine's own: it is over there when the caller hears of it, give or take two steps."""

    async def main() -> None:
        settings = {"default_timeout_s": LIMIT_S} if ask is default_timeout else {}
        async with whole_stack(trained_folder, mock_step_ms=STEP_MS, gateway=settings) as stack:
            assert await ask(stack)
            assert await steps_until_idle(stack) <= MAX_STEPS

    asyncio.run(main())
