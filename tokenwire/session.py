"""The client's side of a Session: one stream to one peer, kept alive, with frames batched upwards.

Serves both Sessions of the contract, text and token, which differ in their messages alone. Knows handles, Hello, Drain
and loss; does not know what a delta means: frames go to the listener as they come.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

import grpc

from tokenwire.errors import FailedPrecondition, Internal, TokenwireError, Unavailable
from tokenwire.requests import CancelReason
from tokenwire.status import TLS_FAILED, from_rpc_error
from tokenwire.tasks import cancel_and_wait
from tokenwire.v1 import common_pb2
from tokenwire.version import __version__
from tokenwire.wire import CANCEL_TO_WIRE

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
HELLO_TIMEOUT_S = 10.0
SILENCE_S = 20
"""How long a tier may say nothing while something is open on its stream, by a clock that stands when this process does.
It sends a frame every second or every five then, if need be an empty one. So one is found whose event loop hangs: pings
are answered by gRPC's own threads."""
TICK_S = 1.0
MOVE_AFTER_S = 0.05
"""A stream that is still there so long after its connection was left was not broken, but told to move."""
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 0.5
MAX_FRAME_BYTES = 512 * 1024
"""A frame up takes nothing more once it would pass this: what was submitted meanwhile must not end a shared stream for
being larger than a message may be. One Submit larger than this goes alone."""
SMALL_BYTES = 16
"""Of a Cancel or a Credit, at most."""
MAX_HANDLE = 2**32 - 1
LAST_FIRST_HANDLE = MAX_HANDLE - 1024
"""Past it a request with many choices could run out of handles: a new stream takes over."""

R = TypeVar("R")

ToldToMove = Callable[[], Coroutine[Any, Any, None]]
"""Returns when a connection is to be left for a new one, as `tokenwire.channels.told_to_move` does."""


async def never() -> None:
    """Where nobody hears that a connection is to be left."""
    await asyncio.Event().wait()


class SessionListener(Protocol[R]):
    """What a session's owner is told. All calls come on the event loop and must not block or raise."""

    def on_ready(self, stream: "SessionStream[R]") -> None:
        """A stream is open and its Hello has been read. Raise FailedPrecondition to refuse the peer."""

    def on_frame(self, stream: "SessionStream[R]", frame: Any) -> None:
        """A frame came. Pop a finished sequence's receiver from `stream.receivers`."""

    def on_lost(self, stream: "SessionStream[R]", receivers: dict[int, R], error: TokenwireError) -> None:
        """The stream broke under these sequences. Each must still get its terminal event."""


class SessionStream(Generic[R]):
    """One stream of a session: its handles, who receives for them, and what waits to be written."""

    def __init__(
        self,
        call: Any,
        request_type: Callable[..., Any],
        hello: common_pb2.Hello,
        on_exhausted: Callable[["SessionStream[R]"], None],
    ) -> None:
        self.call = call
        self.hello = hello
        """The peer's Hello."""
        self.receivers: dict[int, R] = {}
        """Open sequences by handle."""
        self.draining = False
        self.heard = True
        """Whether a frame came since this was last asked."""
        self.before_write: Callable[[Any], None] | None = None
        """May add to each frame up as it is written."""
        self._request_type = request_type
        self._on_exhausted = on_exhausted
        self._pending: deque[Any] = deque()
        """Frames that wait to be written, the last being the one that is filled."""
        self._pending_bytes = 0
        """Of the last one, about."""
        self._wake = asyncio.Event()
        self._touched = False
        self._next_handle = 1

    def open(self, receivers: list[R]) -> int:
        """Register one receiver per choice under consecutive handles; returns the first."""
        first = self._next_handle
        self._next_handle += len(receivers)
        for offset, receiver in enumerate(receivers):
            self.receivers[first + offset] = receiver
        if self._next_handle > LAST_FIRST_HANDLE:
            self._on_exhausted(self)
        return first

    def submit(self, submit: Any) -> None:
        """Send a Submit with the next frame up."""
        self._frame_for(submit.ByteSize()).submits.append(submit)

    def cancel(self, handle: int, reason: CancelReason) -> None:
        """Send a Cancel with the next frame up. The terminal event still comes, unless the receiver was popped."""
        cancel = common_pb2.Cancel(handle=handle, reason=CANCEL_TO_WIRE[reason])
        self._frame_for(SMALL_BYTES).cancels.append(cancel)

    def credit(self, handle: int, tokens: int) -> None:
        """Send a Credit with the next frame up (text sessions alone)."""
        credit = common_pb2.Credit(handle=handle, tokens=tokens)
        self._frame_for(SMALL_BYTES).credits.append(credit)

    def touch(self) -> None:
        """Send a frame up soon, even one in which there is nothing of what this stream knows."""
        self._touched = True
        self._wake.set()

    async def until_silent(self) -> None:
        """Return once nothing has come for SILENCE_S while something was open."""
        num_ticks = 0
        while num_ticks < SILENCE_S:
            await asyncio.sleep(TICK_S)
            num_ticks = 0 if self.heard or not self.receivers else num_ticks + 1
            self.heard = False

    def release(self) -> None:
        """Wake the writer so that a draining stream whose last sequence ended can close."""
        self._wake.set()

    async def write_frames(self) -> None:
        """Write what is pending, one frame in flight; half-close once draining and nothing is open."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._pending or self._touched:
                    await self._write(self._pending.popleft() if self._pending else self._request_type())
                if self.draining and not self.receivers:
                    await self.call.done_writing()
                    return
            except (grpc.RpcError, asyncio.InvalidStateError):
                return  # the stream is gone; its reader says why

    def _frame_for(self, num_bytes: int) -> Any:
        """The frame that has room for so much more, and is written soon."""
        if not self._pending or self._pending_bytes + num_bytes > MAX_FRAME_BYTES:
            self._pending.append(self._request_type())
            self._pending_bytes = 0
        self._pending_bytes += num_bytes
        self._wake.set()
        return self._pending[-1]

    async def _write(self, frame: Any) -> None:
        self._touched = False
        if self.before_write is not None:
            self.before_write(frame)
        await self.call.write(frame)


class SessionClient(Generic[R]):
    """Keeps one Session to one peer open: connects, says Hello, re-connects with backoff, moves on when told to.

    A peer tells by a Drain frame, whose stream takes nothing new from then on, or by a GOAWAY for the connection, whose
    stream takes what is new until another has been opened. Either way it runs out beside the new one.
    """

    def __init__(
        self,
        target: str,
        open_call: Callable[[], Any],
        request_type: Callable[..., Any],
        listener: SessionListener[R],
        told_to_move: ToldToMove = never,
        *,
        beats: bool = False,
    ) -> None:
        """`told_to_move` returns when the connection of the call opened next is to be left.

        `beats`: the peer is known to send a frame every few seconds while something is open; silence means it is lost.
        """
        self.target = target
        self.stream: SessionStream[R] | None = None
        """Where new requests go; None while there is no connection."""
        self.last_error: TokenwireError = Unavailable(f"{target} has not answered yet")
        self._open_call = open_call
        self._request_type = request_type
        self._listener = listener
        self._told_to_move = told_to_move
        self._beats = beats
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._told = ""
        """What kept a stream from being opened, as it was logged last."""

    @property
    def closed(self) -> bool:
        """Nothing will be connected any more: it was closed, or its channel."""
        return self._closed

    def start(self) -> None:
        """Begin connecting in the background."""
        self._spawn(self._keep_connected())

    async def close(self) -> None:
        """Cut the streams. Their open sequences are reported lost."""
        self._closed = True
        await cancel_and_wait(*self._tasks)

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_connected(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._closed:
            moved_on = asyncio.Event()
            task = self._spawn(self._run_stream(moved_on))
            mover = asyncio.ensure_future(moved_on.wait())
            try:
                await asyncio.wait({task, mover}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                mover.cancel()
            if moved_on.is_set():
                backoff_s = FIRST_BACKOFF_S
                if not task.done():
                    continue  # told to drain: the old stream runs out by itself beside the new one
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _run_stream(self, moved_on: asyncio.Event) -> None:
        """One stream from Hello to its end. `moved_on` is set when it was good and a new one is wanted."""
        leaving = self._spawn(self._told_to_move())
        call: Any = None
        stream: SessionStream[R] | None = None
        tasks: list[asyncio.Task[None]] = []
        adopted = False
        try:
            call = self._open_call()
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await self._greet(call)
            stream = SessionStream(call, self._request_type, first.hello, self._on_exhausted(moved_on))
            self._listener.on_ready(stream)
            self._adopt(stream)
            adopted = True
            self._spawn(self._leave(leaving, moved_on))
            self._listener.on_frame(stream, first)
            reader = self._spawn(self._read_frames(stream, moved_on))
            silence = self._spawn(stream.until_silent() if self._beats else never())
            tasks = [reader, silence, self._spawn(stream.write_frames())]
            await asyncio.wait({reader, silence}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                raise Unavailable(f"{self.target} has said nothing for {SILENCE_S} s", reason="SILENT")
            reader.result()
            error = self._ended(stream)
        except asyncio.CancelledError:
            self._lose(stream, Unavailable(f"the session to {self.target} was closed", reason="SESSION_CLOSED"))
            raise
        except Exception as failure:
            error = self._why(failure, stream)
        finally:
            if call is not None:
                call.cancel()
            leaving.cancel()
            for task in tasks:
                task.cancel()
        self._lose(stream, error)
        if adopted:
            moved_on.set()

    async def _read_frames(self, stream: SessionStream[R], moved_on: asyncio.Event) -> None:
        """Hand frames on until the peer ends the call."""
        while (frame := await stream.call.read()) is not grpc.aio.EOF:
            stream.heard = True
            if frame is None:
                raise self._unreadable()
            if frame.HasField("drain"):
                self._drain(stream, moved_on)
            self._listener.on_frame(stream, frame)
            if stream.draining and not stream.receivers:
                stream.release()

    def _why(self, failure: Exception, stream: SessionStream[R] | None) -> TokenwireError:
        """What ended a stream, or kept it from being opened, as an error for those who are waiting."""
        if isinstance(failure, TokenwireError):
            return failure
        if isinstance(failure, TimeoutError):
            return Unavailable(f"{self.target} did not say Hello within {HELLO_TIMEOUT_S:g} s", reason="NO_HELLO")
        if isinstance(failure, grpc.aio.UsageError):
            self._closed = True
            return Unavailable(f"the channel to {self.target} was closed", reason="SESSION_CLOSED")
        if isinstance(failure, grpc.RpcError):
            error = from_rpc_error(failure)
            if stream is None and isinstance(error, Unavailable) and error.reason == Unavailable.default_reason:
                log.debug("%s: %s", self.target, error)
                return Unavailable(f"{self.target} cannot be reached", reason="UNREACHABLE")
            return error
        log.error("the session to %s failed on this side", self.target, exc_info=failure)
        return Internal(f"the session to {self.target} failed: {type(failure).__name__}; the log has the details")

    async def _greet(self, call: Any) -> Any:
        """Hello each way. Returns the first frame down, which can say more than that."""
        hello = common_pb2.Hello(protocol_version=PROTOCOL_VERSION, peer=f"tokenwire/{__version__}")
        await call.write(self._request_type(hello=hello))
        first = await call.read()
        if first is grpc.aio.EOF:
            raise self._ended()
        if first is None:
            raise self._unreadable()
        if first.hello.protocol_version != PROTOCOL_VERSION:
            version = first.hello.protocol_version
            raise FailedPrecondition(
                f"{self.target} speaks session protocol {version}, this side {PROTOCOL_VERSION}: run equal releases",
                reason="PROTOCOL_VERSION",
            )
        return first

    async def _leave(self, leaving: asyncio.Task[None], moved_on: asyncio.Event) -> None:
        """Ask for a new stream once the connection is to be left. The one there is serves until then."""
        await asyncio.wait({leaving})
        if not leaving.cancelled():
            await asyncio.sleep(MOVE_AFTER_S)
            moved_on.set()

    def _adopt(self, stream: SessionStream[R]) -> None:
        """New requests go here from now on; what another stream has runs out there."""
        before, self.stream = self.stream, stream
        self.last_error = Unavailable(f"{self.target} is being connected to again", reason="RECONNECTING")
        if before is not None:
            before.draining = True
            before.release()

    def _on_exhausted(self, moved_on: asyncio.Event) -> Callable[[SessionStream[R]], None]:
        return lambda stream: self._drain(stream, moved_on)

    def _drain(self, stream: SessionStream[R], moved_on: asyncio.Event) -> None:
        stream.draining = True
        if self.stream is stream:
            self.stream = None
        stream.release()
        moved_on.set()

    def _ended(self, stream: SessionStream[R] | None = None) -> TokenwireError:
        """The peer ended the call; where it had said so before, what it did not take any more is no loss."""
        reason = "DRAINING" if stream is not None and stream.draining else "SESSION_ENDED"
        return Unavailable(f"{self.target} ended the session", reason=reason)

    def _unreadable(self) -> TokenwireError:
        """What is read is None where gRPC could not decode it."""
        return Internal(f"{self.target} sent a frame that cannot be read", reason="BAD_FRAME")

    def _lose(self, stream: SessionStream[R] | None, error: TokenwireError) -> None:
        self.last_error = error
        if stream is None:
            if error.reason in (TLS_FAILED, "BAD_FRAME") and error.message != self._told:
                log.warning("%s cannot be reached: %s", self.target, error)
                self._told = error.message
            return
        self._told = ""
        if self.stream is stream:
            self.stream = None
        receivers, stream.receivers = stream.receivers, {}
        self._listener.on_lost(stream, receivers, error)
