"""The client's side of a Session against a scripted server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.fakes.loopback import on_loopback
from tokenwire import session as session_module
from tokenwire.errors import FailedPrecondition, Internal, TokenwireError, Unauthenticated, Unavailable
from tokenwire.interceptor import TypedErrors
from tokenwire.requests import CancelReason
from tokenwire.session import MAX_FRAME_BYTES, SessionClient, SessionStream
from tokenwire.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc

Behaviour = Callable[[AsyncIterator[Any], grpc.aio.ServicerContext], Any]


class Scripted(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Runs one behaviour per stream, in order; the last one serves every later stream."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.num_streams = 0

    async def Session(self, frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        behaviour = self.behaviours[min(self.num_streams, len(self.behaviours) - 1)]
        self.num_streams += 1
        await behaviour(frames, context)


class Listener:
    def __init__(self) -> None:
        self.ready: list[SessionStream[str]] = []
        self.finished: list[str] = []
        self.lost: list[tuple[dict[int, str], TokenwireError]] = []
        self.refuse = False
        self.break_on_frame = False

    def on_ready(self, stream: SessionStream[str]) -> None:
        if self.refuse:
            raise FailedPrecondition("not this peer")
        self.ready.append(stream)

    def on_frame(self, stream: SessionStream[str], frame: Any) -> None:
        if self.break_on_frame:
            raise ValueError("a bug")
        for finish in frame.finishes:
            self.finished.append(stream.receivers.pop(finish.handle))

    def on_lost(self, stream: SessionStream[str], receivers: dict[int, str], error: TokenwireError) -> None:
        self.lost.append((receivers, error))


@asynccontextmanager
async def connected(
    servicer: Scripted | grpc.GenericRpcHandler, listener: Listener, *, beats: bool = False
) -> AsyncIterator[SessionClient[str]]:
    server = grpc.aio.server(interceptors=[TypedErrors()])
    if isinstance(servicer, Scripted):
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server)
    else:
        server.add_generic_rpc_handlers([servicer])
    async with on_loopback(server) as address, grpc.aio.insecure_channel(address) as channel:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        client: SessionClient[str] = SessionClient(
            "peer", stub.Session, tokenizer_pb2.SessionRequest, listener, beats=beats
        )
        client.start()
        try:
            yield client
        finally:
            await client.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def hello(version: int = 1) -> tokenizer_pb2.SessionResponse:
    return tokenizer_pb2.SessionResponse(hello=common_pb2.Hello(protocol_version=version, epoch=5))


async def answering(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
    """Finishes each submit at once."""
    await anext(frames)
    await context.write(hello())
    async for frame in frames:
        finishes = [common_pb2.Finish(handle=submit.handle) for submit in frame.submits]
        await context.write(tokenizer_pb2.SessionResponse(finishes=finishes))


async def breaking(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
    """Takes one frame, then fails."""
    await anext(frames)
    await context.write(hello())
    await anext(frames)
    raise Unavailable("the peer is gone")


def send(client: SessionClient[str], name: str) -> int:
    stream = client.stream
    assert stream is not None
    handle = stream.open([name])
    stream.submit(tokenizer_pb2.Submit(handle=handle))
    return handle


def test_submits_of_one_moment_share_a_frame_and_handles_grow() -> None:
    frames_seen: list[Any] = []

    async def watching(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        async for frame in frames:
            frames_seen.append(frame)

    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(watching), listener) as client:
            await until(lambda: client.stream)
            first = send(client, "a"), send(client, "b")
            client.stream.cancel(first[0], CancelReason.CLIENT)  # type: ignore[union-attr]
            await until(lambda: frames_seen)
            (frame,) = frames_seen
            assert [submit.handle for submit in frame.submits] == [*first] == [1, 2]
            assert [cancel.handle for cancel in frame.cancels] == [1]
            assert client.stream is not None and client.stream.hello.epoch == 5

    asyncio.run(main())


def test_what_was_submitted_in_one_moment_is_never_a_message_too_large() -> None:
    frames_seen: list[Any] = []

    async def watching(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        async for frame in frames:
            frames_seen.append(frame)

    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(watching), listener) as client:
            await until(lambda: client.stream)
            stream = client.stream
            assert stream is not None
            sizes = [100_000] * 50 + [2 * MAX_FRAME_BYTES, 10, 10]
            for size in sizes:
                handle = stream.open([str(size)])
                request = tokenizer_pb2.TextRequest(text="x" * size)
                stream.submit(tokenizer_pb2.Submit(handle=handle, request=request))
                stream.credit(handle, 1)
            stream.cancel(1, CancelReason.CLIENT)
            await until(lambda: sum(len(frame.submits) for frame in frames_seen) == len(sizes) or listener.lost)
            assert not listener.lost, listener.lost[0][1]
            handles = [submit.handle for frame in frames_seen for submit in frame.submits]
            assert handles == list(range(1, len(sizes) + 1))
            assert [frame.ByteSize() for frame in frames_seen if frame.ByteSize() > MAX_FRAME_BYTES + 1000] == [
                frame.ByteSize() for frame in frames_seen for submit in frame.submits if submit.handle == 51
            ]
            assert 10 <= len(frames_seen) <= 14, "no more frames than it takes"
            assert [cancel.handle for cancel in frames_seen[-1].cancels] == [1]
            assert sorted(credit.handle for frame in frames_seen for credit in frame.credits) == handles

    asyncio.run(main())


def test_a_broken_stream_reports_what_it_carried_and_a_new_one_is_opened() -> None:
    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(breaking, answering), listener) as client:
            await until(lambda: client.stream)
            handle = send(client, "a")
            await until(lambda: listener.lost)
            receivers, error = listener.lost[0]
            assert receivers == {handle: "a"} and isinstance(error, Unavailable)
            await until(lambda: client.stream)
            send(client, "b")
            await until(lambda: listener.finished == ["b"])

    asyncio.run(main())


def test_a_draining_stream_runs_out_beside_the_new_one() -> None:
    released = asyncio.Event()

    async def draining(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        submit = (await anext(frames)).submits[0]
        await context.write(tokenizer_pb2.SessionResponse(drain=common_pb2.Drain(reason="moving")))
        await released.wait()
        await context.write(tokenizer_pb2.SessionResponse(finishes=[common_pb2.Finish(handle=submit.handle)]))
        assert [frame async for frame in frames] == []  # half-closed once nothing is open

    async def main() -> None:
        listener = Listener()
        servicer = Scripted(draining, answering)
        async with connected(servicer, listener) as client:
            await until(lambda: client.stream)
            old = client.stream
            send(client, "old")
            await until(lambda: client.stream not in (None, old))
            send(client, "new")
            await until(lambda: listener.finished == ["new"])
            released.set()
            await until(lambda: listener.finished == ["new", "old"])
            await until(lambda: listener.lost)
            assert listener.lost[0][0] == {}
            assert servicer.num_streams == 2

    asyncio.run(main())


def test_exhausted_handles_move_new_requests_to_a_new_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "LAST_FIRST_HANDLE", 3)

    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(answering), listener) as client:
            for number in range(9):
                await until(lambda: client.stream)
                send(client, str(number))
            await until(lambda: len(listener.finished) == 9)
            assert len(listener.ready) >= 3

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["version", "refused"])
def test_a_peer_that_does_not_suit_gets_no_requests(fault: str) -> None:
    async def odd(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello(2))
        await asyncio.sleep(10)

    async def main() -> None:
        listener = Listener()
        listener.refuse = fault == "refused"
        async with connected(Scripted(odd if fault == "version" else answering), listener) as client:
            await until(lambda: isinstance(client.last_error, FailedPrecondition))
            assert client.stream is None

    asyncio.run(main())


def test_what_was_wrong_before_a_stream_opened_is_forgotten() -> None:
    async def refusing(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        raise Unauthenticated("who are you?")

    async def main() -> None:
        async with connected(Scripted(refusing, answering), Listener()) as client:
            await until(lambda: isinstance(client.last_error, Unauthenticated))
            await until(lambda: client.stream)
            assert isinstance(client.last_error, Unavailable) and "again" in client.last_error.message

    asyncio.run(main())


def test_a_bug_of_the_listener_ends_the_stream_with_internal_and_is_not_silent() -> None:
    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(answering), listener) as client:
            await until(lambda: client.stream)
            listener.break_on_frame = True
            handle = send(client, "a")
            await until(lambda: listener.lost)
            receivers, error = listener.lost[0]
            assert receivers == {handle: "a"} and isinstance(error, Internal)

    asyncio.run(main())


@pytest.mark.parametrize("greets", [True, False], ids=["behind a Hello", "in place of a Hello"])
def test_a_frame_that_cannot_be_read_is_said_once_and_without_a_traceback(
    greets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoiled(grpc.GenericRpcHandler):
        num_streams = 0

        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(self.session)

        async def session(self, frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            self.num_streams += 1
            await anext(frames)
            if greets:
                await context.write(hello().SerializeToString())
                await anext(frames)
            await context.write(hello().SerializeToString()[:-1])

    async def main() -> None:
        listener, spoiled = Listener(), Spoiled()
        async with connected(spoiled, listener) as client:
            if greets:
                await until(lambda: client.stream)
                handle = send(client, "a")
                await until(lambda: listener.lost)
                assert listener.lost[0][0] == {handle: "a"}
                error = listener.lost[0][1]
            else:
                await until(lambda: spoiled.num_streams > 3)
                error = client.last_error
            assert (error.message, error.reason) == ("peer sent a frame that cannot be read", "BAD_FRAME")

    asyncio.run(main())
    said = [each for each in caplog.records if each.name == session_module.__name__]
    assert not any(each.exc_info for each in said)
    assert len(said) == (0 if greets else 1), "a listener says itself that it lost a stream"


def test_closing_reports_what_is_open() -> None:
    async def silent(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        async for _ in frames:
            pass

    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(silent), listener) as client:
            await until(lambda: client.stream)
            handle = send(client, "a")
            await asyncio.sleep(0.02)
        assert listener.lost[0][0] == {handle: "a"}
        assert listener.lost[0][1].reason == "SESSION_CLOSED"

    asyncio.run(main())


def test_a_peer_that_says_nothing_while_something_is_open_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs, as against one that sends an empty frame now and then, and one of which nothing is wanted."""
    monkeypatch.setattr(session_module, "TICK_S", 0.01)
    beating = asyncio.Event()

    async def beating_first(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        await anext(frames)
        while not beating.is_set():
            await context.write(tokenizer_pb2.SessionResponse())
            await asyncio.sleep(0.01)
        await asyncio.sleep(60)

    async def main() -> None:
        listener = Listener()
        async with connected(Scripted(beating_first), listener, beats=True) as client:
            await until(lambda: client.stream)
            await asyncio.sleep(0.5)
            assert not listener.lost, "nothing is open"
            handle = send(client, "a")
            await asyncio.sleep(0.5)
            assert not listener.lost, "it says that it is there"
            beating.set()
            await until(lambda: listener.lost)
            receivers, error = listener.lost[0]
            assert receivers == {handle: "a"} and error.reason == "SILENT"
            await until(lambda: client.stream)  # another is opened

    asyncio.run(main())
