"""What every tier's server has: health, reflection, typed errors on every kind of call, bounds, drain; and sessions.

One small server on the loopback stands for all tiers; its handlers are the gateway's service with wrong manners.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tokenwire.addresses import is_loopback, join_host_port
from tokenwire.errors import (
    FailedPrecondition,
    Internal,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    TokenwireError,
    Unavailable,
)
from tokenwire.health import is_serving, wait_serving
from tokenwire.server import LIVENESS, GrpcServer, refuse_public_without_auth
from tokenwire.session_server import MOST_SUBMITS, run_session
from tokenwire.settings import ServerSettings
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, tokenizer_pb2

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GenerationService"]
HELLO = tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1))


class EchoSession:
    """Answers each submit with its text, and ends when the peer has half-closed."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Any] = asyncio.Queue()
        self.num_closed = 0
        self.frames: list[Any] = []

    def hello(self) -> Any:
        return tokenizer_pb2.SessionResponse(hello=common_pb2.Hello(protocol_version=1, peer="echo"))

    def on_frame(self, frame: Any) -> None:
        self.frames.append(frame)
        for submit in frame.submits:
            if submit.handle == 0:
                raise InvalidRequest("handle 0 is not allowed")
            self.waiting.put_nowait(
                tokenizer_pb2.SessionResponse(handles=[submit.handle], texts=[submit.request.text], num_tokens=[1])
            )

    def half_close(self) -> None:
        self.waiting.put_nowait(None)

    def drain(self, reason: str, grace_s: float) -> None:
        self.waiting.put_nowait(tokenizer_pb2.SessionResponse(drain=common_pb2.Drain(reason=reason)))

    async def next_frame(self) -> Any | None:
        return await self.waiting.get()

    def close(self) -> None:
        self.num_closed += 1


class RudeService(gateway_pb2_grpc.GenerationServiceServicer):
    def __init__(self) -> None:
        self.sessions: list[EchoSession] = []
        self.may_end = asyncio.Event()

    async def ListModels(self, request: Any, context: Any) -> Any:
        raise Overloaded("full", retry_after_s=2.5)

    async def Tokenize(self, request: Any, context: Any) -> Any:
        if request.model == "bug":
            raise ZeroDivisionError("secret")
        return tokenizer_pb2.TokenizeResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield gateway_pb2.GenerateResponse(delta=gateway_pb2.Delta(text="one"))
        if request.model == "wait":
            await self.may_end.wait()
            yield gateway_pb2.GenerateResponse(delta=gateway_pb2.Delta(text="two"))
            return
        raise InvalidRequest("bad in the middle")

    async def Session(self, requests: Any, context: Any) -> None:
        session = EchoSession()
        self.sessions.append(session)
        await run_session(requests, context, session)


class Running:
    def __init__(self, server: GrpcServer, service: RudeService, channel: grpc.aio.Channel, target: str) -> None:
        self.server, self.service, self.channel, self.target = server, service, channel, target
        self.stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)


def with_server(check: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        server = GrpcServer(ServerSettings(**settings))
        service = RudeService()
        server.add(gateway_pb2_grpc.add_GenerationServiceServicer_to_server, service, SERVICE)
        target = f"127.0.0.1:{await server.start()}"
        async with grpc.aio.insecure_channel(target) as channel:
            try:
                await check(Running(server, service, channel, target))
            finally:
                await server.server.stop(None)

    asyncio.run(main())


async def error_of(call: Any) -> TokenwireError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def test_health_follows_what_the_tier_says() -> None:
    async def check(running: Running) -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, is_serving, running.target) is False
        waiting = asyncio.create_task(wait_serving(running.target))
        await running.server.set_serving(True)
        await asyncio.wait_for(waiting, 10)
        assert await loop.run_in_executor(None, is_serving, running.target) is True

    with_server(check)


def test_a_tier_that_cannot_answer_is_alive_all_the_same() -> None:
    async def check(running: Running) -> None:
        stub = health_pb2_grpc.HealthStub(running.channel)
        alive = await stub.Check(health_pb2.HealthCheckRequest(service=LIVENESS))
        able = await stub.Check(health_pb2.HealthCheckRequest())
        serving = health_pb2.HealthCheckResponse.SERVING
        assert (alive.status == serving, able.status == serving) == (True, False)

    with_server(check)


def test_reflection_lists_the_services() -> None:
    async def check(running: Running) -> None:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE.full_name, "grpc.health.v1.Health"} <= names

    with_server(check)


def test_typed_errors_keep_their_details() -> None:
    async def check(running: Running) -> None:
        error = await error_of(running.stub.ListModels(tokenizer_pb2.ListModelsRequest()))
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == 2.5

    with_server(check)


def test_a_bug_is_internal_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    async def check(running: Running) -> None:
        error = await error_of(running.stub.Tokenize(tokenizer_pb2.TokenizeRequest(model="bug")))
        assert isinstance(error, Internal)
        assert "secret" not in error.message
        await running.stub.Tokenize(tokenizer_pb2.TokenizeRequest())  # and the server goes on

    with_server(check)
    assert "secret" in caplog.text


def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_sent() -> None:
    async def check(running: Running) -> None:
        call = running.stub.Generate(gateway_pb2.GenerateRequest())
        assert (await call.read()).delta.text == "one"
        error = await error_of(call.read())
        assert isinstance(error, InvalidRequest)
        assert error.message == "bad in the middle"

    with_server(check)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"], ids=["not protobuf", "not UTF-8"])
def test_what_cannot_be_read_is_refused_by_name(data: bytes) -> None:
    async def check(running: Running) -> None:
        call: Any = running.channel.unary_unary(f"/{SERVICE.full_name}/Tokenize")
        error = await error_of(call(data))
        assert isinstance(error, InvalidRequest)
        assert error.reason == "MALFORMED_MESSAGE"

    with_server(check)


def test_an_oversize_message_is_refused() -> None:
    async def check(running: Running) -> None:
        error = await error_of(running.stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=["x" * 5000])))
        assert isinstance(error, MessageTooLarge)

    with_server(check, max_message_bytes=4096)


def test_draining_lets_running_calls_finish_and_takes_no_new_ones() -> None:
    async def check(running: Running) -> None:
        call = running.stub.Generate(gateway_pb2.GenerateRequest(model="wait"))
        assert (await call.read()).delta.text == "one"
        drain = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0.1)
        assert not drain.done()
        running.service.may_end.set()
        assert (await call.read()).delta.text == "two"
        assert await call.read() is grpc.aio.EOF
        await asyncio.wait_for(drain, 10)

    with_server(check, drain_timeout_s=20.0)


def test_what_came_and_was_not_begun_when_a_server_ends_never_was_the_callers_doing() -> None:
    async def check(running: Running) -> None:
        def call() -> None:
            with grpc.insecure_channel(running.target) as channel:
                gateway_pb2_grpc.GenerationServiceStub(channel).Tokenize(tokenizer_pb2.TokenizeRequest(), timeout=20)

        with ThreadPoolExecutor(16) as pool:
            calls = [pool.submit(call) for _ in range(16)]
            time.sleep(1.0)  # noqa: ASYNC251  they come while the event loop does something else
            await running.server.drain()
            await asyncio.to_thread(wait, calls)
        errors = [from_rpc_error(error) for each in calls if isinstance(error := each.exception(), grpc.RpcError)]
        assert errors and all(isinstance(error, Unavailable) for error in errors), errors

    with_server(check, drain_timeout_s=20.0)


def test_who_only_watches_is_not_waited_for() -> None:
    async def check(running: Running) -> None:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        call = running.stub.Generate(gateway_pb2.GenerateRequest(model="wait"))
        await call.read()
        drain = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0.3)
        assert not drain.done()  # a call runs
        running.service.may_end.set()
        assert (await call.read()).delta.text == "two"
        await asyncio.wait_for(drain, 20)

    with_server(check, drain_timeout_s=300.0)


def test_what_does_not_finish_within_the_limit_is_cut() -> None:
    async def check(running: Running) -> None:
        call = running.stub.Generate(gateway_pb2.GenerateRequest(model="wait"))
        await call.read()
        await asyncio.wait_for(running.server.drain(), 10)
        await error_of(call.read())

    with_server(check, drain_timeout_s=0.1)


def test_a_taken_port_is_refused_with_what_to_do() -> None:
    async def check(running: Running) -> None:
        with pytest.raises(FailedPrecondition, match="give another with --port"):
            await GrpcServer(ServerSettings(port=running.server.port)).start()

    with_server(check)


def test_beyond_the_loopback_only_when_told() -> None:
    with pytest.raises(FailedPrecondition, match=r"--host 0\.0\.0\.0 .* add --insecure"):
        refuse_public_without_auth(ServerSettings(host="0.0.0.0"))
    refuse_public_without_auth(ServerSettings(host="0.0.0.0", insecure=True))
    refuse_public_without_auth(ServerSettings(host="localhost"))
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "10.0.0.1", "::")] == [True, True, False, False]
    assert [join_host_port(host, 1) for host in ("h", "::1")] == ["h:1", "[::1]:1"]


def test_a_session_answers_and_ends_when_half_closed() -> None:
    async def check(running: Running) -> None:
        call = running.stub.Session()
        await call.write(HELLO)
        assert (await call.read()).hello.peer == "echo"
        request = tokenizer_pb2.TextRequest(text="hi")
        await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
        assert list((await call.read()).texts) == ["hi"]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert [session.num_closed for session in running.service.sessions] == [1]

    with_server(check)


def test_a_frame_of_very_many_submits_lets_others_have_their_turn() -> None:
    async def check(running: Running) -> None:
        call = running.stub.Session()
        await call.write(HELLO)
        await call.read()
        request = tokenizer_pb2.TextRequest(text="hi")
        submits = [tokenizer_pb2.Submit(handle=handle, request=request) for handle in range(1, 101)]
        cancels = [common_pb2.Cancel(handle=70)]
        await call.write(tokenizer_pb2.SessionRequest(submits=submits, cancels=cancels, drain=common_pb2.Drain()))
        assert [(await call.read()).handles[0] for _ in range(100)] == list(range(1, 101))
        assert await call.read() is grpc.aio.EOF
        frames = running.service.sessions[0].frames
        assert max(len(frame.submits) for frame in frames) <= MOST_SUBMITS < len(submits)
        assert all(list(frame.cancels) == cancels for frame in frames)
        assert [frame.HasField("drain") for frame in frames] == [False] * (len(frames) - 1) + [True]

    with_server(check)


@pytest.mark.parametrize(
    ("frames", "cls", "said"),
    [
        ([], InvalidRequest, "must carry hello"),
        ([tokenizer_pb2.SessionRequest()], InvalidRequest, "must carry hello"),
        (
            [tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=9))],
            FailedPrecondition,
            "protocol_version 9 is not known here",
        ),
        (
            [HELLO, tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit()])],
            InvalidRequest,
            "handle 0 is not allowed",
        ),
    ],
)
def test_a_session_that_breaks_the_protocol_ends_with_the_reason(
    frames: list[Any], cls: type[TokenwireError], said: str
) -> None:
    async def check(running: Running) -> None:
        call = running.stub.Session()
        for frame in frames:
            await call.write(frame)
        await call.done_writing()
        with pytest.raises(grpc.RpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        error = from_rpc_error(caught.value)
        assert type(error) is cls
        assert said in error.message
        assert [session.num_closed for session in running.service.sessions] == [1]

    with_server(check)


def test_a_session_whose_peer_vanishes_is_closed_once() -> None:
    async def check(running: Running) -> None:
        call = running.stub.Session()
        await call.write(HELLO)
        await call.read()
        call.cancel()
        (session,) = running.service.sessions
        while session.num_closed == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert session.num_closed == 1

    with_server(check)
