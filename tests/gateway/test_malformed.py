"""Hundreds of wrong requests over HTTP, gRPC, gRPC-Web and Connect.

Each is answered rightly, none leaves anything, no other notices.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.live_gateway import generate_request
from tests.fakes.malformed import GOOD, JSON, MAX_BODY_BYTES, GrpcCase, HttpCase, grpc_cases, http_cases
from tests.fakes.malformed_web import WebCase, web_cases
from tests.fakes.web_caller import FORMS, WebCaller
from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

HTTP_CASES, GRPC_CASES, WEB_CASES = http_cases(), grpc_cases(), web_cases()
SERVICE = "/tokenwire.v1.GenerationService/"
STREAMED = {"Generate", "Chat"}
NUM_OTHERS = 4
AT_A_TIME = 8
T = TypeVar("T")
SMALL = {"max_body_bytes": MAX_BODY_BYTES, "max_message_bytes": 1_048_576}


def test_there_are_enough() -> None:
    assert len(HTTP_CASES) >= 300 and len(GRPC_CASES) >= 100
    assert len({case.name for case in HTTP_CASES}) == len(HTTP_CASES)
    assert len({case.name for case in WEB_CASES}) == len(WEB_CASES) >= 600


async def together(awaitables: Sequence[Awaitable[T]]) -> list[T]:
    """All results, so many at a time."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def one(awaitable: Awaitable[T]) -> T:
        async with places:
            return await awaitable

    return await asyncio.gather(*map(one, awaitables))


@asynccontextmanager
async def undisturbed(folder: Path) -> AsyncIterator[WholeStack]:
    """The stack under other people's streams, which must come to their own ends; nothing is left behind them."""
    async with whole_stack(folder, gateway=SMALL, mock_step_ms=2.0, mock_max_context_tokens=4096) as stack:
        options = common_pb2.GenerationOptions()
        options.stop.ignore_eos, options.stop.max_tokens = True, 50
        stop = asyncio.Event()

        async def other() -> None:
            while not stop.is_set():
                *_, last = [r async for r in stack.gateway.stub.Generate(generate_request("hello", options=options))]
                assert last.finish.reason == common_pb2.FINISH_REASON_LENGTH
                assert last.finish.usage.completion_tokens == 50

        async def settled() -> int:
            await stack.until_idle()
            await asyncio.sleep(0.1)
            return len(asyncio.all_tasks())

        await stack.gateway.generate("hello", options=options)  # the clients' own connections are there from now on
        await together([stack.gateway.http.get("/healthz") for _ in range(AT_A_TIME)])
        before = await settled()
        others = [asyncio.create_task(other()) for _ in range(NUM_OTHERS)]
        try:
            yield stack
        finally:
            stop.set()
            await asyncio.gather(*others)
        assert await settled() <= before, [task.get_coro() for task in asyncio.all_tasks()]
        for session in stack.gateway.server.service._sessions:
            raise AssertionError(f"a session is left: {session}")


async def send(http: httpx.AsyncClient, case: HttpCase) -> str | None:
    """What is wrong with how a case was answered."""
    headers = {"content-type": case.content_type} if case.content_type else {}
    response = await http.post(case.path, content=case.content, headers=headers)
    if response.status_code not in case.statuses:
        return f"{case.name}: {response.status_code} {response.text[:200]}"
    error = response.json()["error"]
    if not error["message"] or error["type"] != "invalid_request_error" or not error["code"]:
        return f"{case.name}: {error}"
    return None


def test_http(trained_folder: Path) -> None:
    async def main() -> None:
        async with undisturbed(trained_folder) as stack:
            found = await together([send(stack.gateway.http, case) for case in HTTP_CASES])
            assert [wrong for wrong in found if wrong] == []

    asyncio.run(main())


async def call(channel: grpc.aio.Channel, case: GrpcCase) -> str | None:
    """What is wrong with how a case was answered."""
    kind = channel.unary_stream if case.method in STREAMED else channel.unary_unary
    method = kind(SERVICE + case.method, request_serializer=None, response_deserializer=None)
    running = method(case.message, timeout=20)
    try:
        if case.method in STREAMED:
            answers = [answer async for answer in running]
            # One of several prompts has its error in its own terminal event.
            return f"{case.name}: answered {len(answers)} times"
        await running
        return f"{case.name}: OK"
    except grpc.aio.AioRpcError as error:
        return None if error.code().name in case.codes else f"{case.name}: {error.code().name} {error.details()}"


def test_grpc(trained_folder: Path) -> None:
    async def main() -> None:
        async with undisturbed(trained_folder) as stack:
            found = await together([call(stack.gateway.channel, case) for case in GRPC_CASES])
            assert [wrong for wrong in found if wrong] == []

    asyncio.run(main())


async def send_web(http: httpx.AsyncClient, case: WebCase) -> str | None:
    """What is wrong with how a case was answered."""
    caller = WebCaller(http, case.form)
    result = await caller.send(case.method, case.content, caller.head(case.method, ()))
    if result.code not in case.codes or result.messages or result.error is None or not result.error.reason:
        return f"{case.name}: {result.code} {result.error}, answered {len(result.messages)} times"
    return None


@pytest.mark.parametrize("form", FORMS)
def test_browsers(form: str, trained_folder: Path) -> None:
    async def main() -> None:
        async with undisturbed(trained_folder) as stack:
            cases = [send_web(stack.gateway.http, case) for case in WEB_CASES if case.form == form]
            assert [wrong for wrong in await together(cases) if wrong] == []

    asyncio.run(main())


def hello() -> tokenizer_pb2.SessionRequest:
    return tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1))


def submits(*handles: int) -> tokenizer_pb2.SessionRequest:
    request = tokenizer_pb2.TextRequest(text="hello")
    request.options.stop.max_tokens = 2
    found = [tokenizer_pb2.Submit(handle=handle, request=request) for handle in handles]
    return tokenizer_pb2.SessionRequest(submits=found)


def held(handle: int) -> tokenizer_pb2.SessionRequest:
    """One that stays open: its text is never granted."""
    frame = submits(handle)
    frame.submits[0].initial_credit = 0
    return frame


SESSIONS: dict[str, tuple[list[tokenizer_pb2.SessionRequest | bytes], str]] = {
    "no hello": ([submits(1)], "INVALID_ARGUMENT"),
    "nothing at all": ([], "INVALID_ARGUMENT"),
    "another version": (
        [tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=99))],
        "FAILED_PRECONDITION",
    ),
    "hello twice": ([hello(), hello()], "INVALID_ARGUMENT"),
    "handle 0": ([hello(), submits(0)], "INVALID_ARGUMENT"),
    "handle again": ([hello(), submits(5), submits(5)], "INVALID_ARGUMENT"),
    "handles that fall": ([hello(), submits(7, 3)], "INVALID_ARGUMENT"),
    "bytes": ([hello(), b"\xff\xff\xff"], "INVALID_ARGUMENT"),
    "drain, then more": (
        [hello(), held(1), tokenizer_pb2.SessionRequest(drain=common_pb2.Drain()), submits(2)],
        "INVALID_ARGUMENT",
    ),
    "cancels and credits of nobody": (
        [
            hello(),
            tokenizer_pb2.SessionRequest(
                cancels=[common_pb2.Cancel(handle=9)], credits=[common_pb2.Credit(handle=9, tokens=1)]
            ),
        ],
        "OK",
    ),
}


def serialized(message: Any) -> bytes:
    found: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return found


@pytest.mark.parametrize("what", SESSIONS)
def test_sessions(what: str, trained_folder: Path) -> None:
    frames, code = SESSIONS[what]

    async def main() -> None:
        async with undisturbed(trained_folder) as stack:
            method = stack.gateway.channel.stream_stream(
                SERVICE + "Session", request_serializer=serialized, response_deserializer=None
            )
            session = method(iter(frames))
            async with asyncio.timeout(10):
                try:
                    async for _ in session:
                        pass
                except grpc.aio.AioRpcError:
                    pass
                assert (await session.code()).name == code

    asyncio.run(main())


def test_metadata_and_methods(trained_folder: Path) -> None:
    async def main() -> None:
        async with undisturbed(trained_folder) as stack:
            stub, channel = stack.gateway.stub, stack.gateway.channel

            async def code_of(running: Any) -> str:
                try:
                    async for _ in running:
                        pass
                except grpc.aio.AioRpcError:
                    pass
                return str((await running.code()).name)

            request = generate_request("hello")
            long_id = stub.Generate(request, metadata=(("x-request-id", "x" * 200),), timeout=10)
            assert await code_of(long_id) == "INVALID_ARGUMENT"
            large = stub.Generate(request, metadata=(("x-large", "x" * 100_000),), timeout=10)
            assert await code_of(large) == "RESOURCE_EXHAUSTED"
            for method in (SERVICE + "Nothing", "/nobody.Service/Generate", "/"):
                unknown = channel.unary_stream(method, request_serializer=None, response_deserializer=None)(
                    b"", timeout=10
                )
                assert await code_of(unknown) == "UNIMPLEMENTED"

    asyncio.run(main())


def test_bytes_on_the_grpc_port(trained_folder: Path) -> None:
    """What is no HTTP/2, and HTTP/2 that is no gRPC."""

    async def main() -> None:
        async with undisturbed(trained_folder) as stack:
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            for data in (
                b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"\x00" * 1000,
                preface + b"\xff" * 1000,
                preface
                + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
                + b"\x00\x40\x00\x01\x05\x00\x00\x00\x01"
                + b"\xff" * 64,
                preface,
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.server.grpc.port)
                try:
                    writer.write(data)
                    writer.write_eof()
                    async with asyncio.timeout(10):
                        await reader.read(-1)
                except ConnectionError:
                    pass
                finally:
                    writer.close()

    asyncio.run(main())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["messages", "prompt", "inputs", "stop", "tools", "logit_bias", "stream_options", "n", "tool_choice", "documents"]
)
HYPOTHESIS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def run_all(folder: Path, check: Callable[[WholeStack, Any], Any], cases: list[Any]) -> None:
    async def main() -> None:
        async with undisturbed(folder) as stack:
            for case in cases:
                await check(stack, case)

    asyncio.run(main())


@given(cases=st.lists(st.tuples(st.sampled_from(list(GOOD)), NAMES, JSON_VALUES), min_size=20, max_size=20))
@settings(HYPOTHESIS, max_examples=5)
def test_any_json_is_answered(cases: list[Any], trained_folder: Path) -> None:
    async def check(stack: WholeStack, case: Any) -> None:
        path, name, value = case
        body = json.dumps({**GOOD[path][1], name: value}).encode()
        response = await stack.gateway.http.post(path, content=body, headers={"content-type": JSON})
        assert response.status_code in (200, 400), (body, response.text)

    run_all(trained_folder, check, cases)


@given(cases=st.lists(st.tuples(st.sampled_from(sorted(STREAMED)), st.binary(max_size=200)), min_size=20, max_size=20))
@settings(HYPOTHESIS, max_examples=5)
def test_any_bytes_are_answered_over_grpc(cases: list[Any], trained_folder: Path) -> None:
    async def check(stack: WholeStack, case: Any) -> None:
        method, data = case
        kind = gateway_pb2.GenerateRequest if method == "Generate" else gateway_pb2.ChatRequest
        running = stack.gateway.channel.unary_stream(
            SERVICE + method, request_serializer=None, response_deserializer=None
        )(data, timeout=10)
        try:
            async for _ in running:
                break
        except grpc.aio.AioRpcError as error:
            assert error.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"), (kind, data, error)
        running.cancel()

    run_all(trained_folder, check, cases)
