"""A session on its event loop: what is open on its stream, who receives it, how much may be open, and for how long.

A request is open until its terminal event, until its time has been up for a while and the server has said nothing, or
until nobody can read its outputs any more: then it is taken back. Knows streams (`tokenwire.session`) and outputs; does
not know how a client is called.
"""

import asyncio
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from tokenwire.client.events import Finished
from tokenwire.client.messages import DEADLINE_GRACE_S, session_delta
from tokenwire.client.session_outputs import SessionOutputs
from tokenwire.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidRequest,
    PermissionDenied,
    TokenwireError,
    Unauthenticated,
    Unavailable,
)
from tokenwire.requests import CancelReason
from tokenwire.session import SessionClient, SessionStream, ToldToMove
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.wire import terminal_from_wire

CONNECT_TIMEOUT_S = 10.0
LOOK_AGAIN_S = 0.1
"""How often a submit that waits for a connection looks whether there is any use in waiting."""


class OpenRequest:
    """One request on a stream, which receives for its choices: their handles are consecutive."""

    def __init__(self, outputs: SessionOutputs) -> None:
        self.outputs: Callable[[], SessionOutputs | None] = weakref.ref(outputs)
        """Who reads; None once nobody can."""
        self.handles = range(0)
        self.num_open = 0
        """Choices without a terminal event."""
        self.timer: asyncio.TimerHandle | None = None

    def ended(self, num_choices: int = 1) -> None:
        """So many choices have ended."""
        self.num_open -= num_choices
        if self.num_open == 0 and self.timer is not None:
            self.timer.cancel()

    def fail(self, error: TokenwireError) -> None:
        """No terminal event will come."""
        self.ended(self.num_open)
        if (outputs := self.outputs()) is not None:
            outputs.fail(error)


class SessionCore:
    """The session itself. All but `__init__` is called on its event loop."""

    def __init__(
        self,
        open_call: Callable[[], Any],
        target: str,
        max_open: int,
        told_to_move: ToldToMove,
    ) -> None:
        if not isinstance(max_open, int) or max_open < 1:
            raise ValueError(f"max_open {max_open!r} is not allowed: 1 or more")
        self._client: SessionClient[OpenRequest] = SessionClient(
            target, open_call, tokenizer_pb2.SessionRequest, self, told_to_move
        )
        self._max_open = max_open
        self._num_open = 0
        self._turn = asyncio.Lock()
        """Held by the one submit that waits for room; the others wait for it, in order."""
        self._changed = asyncio.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._client.start()

    async def submit(
        self, request: tokenizer_pb2.TextRequest, outputs: SessionOutputs, num_outputs: int, begun_s: float
    ) -> None:
        """Send a request once there is a connection, and room for all its choices. Raises TokenwireError.

        `begun_s`: when it was asked for, on the monotonic clock: the time it waits here is its own.
        """
        submit = tokenizer_pb2.Submit(request=request, initial_credit=outputs.window)
        context = submit.request.context
        deadline_s = begun_s + context.timeout_ms / 1000 if context.timeout_ms else None
        stream = await self._room_until(deadline_s, num_outputs)
        opened = OpenRequest(outputs)
        submit.handle = stream.open([opened] * num_outputs)
        opened.handles, opened.num_open = range(submit.handle, submit.handle + num_outputs), num_outputs
        opened.outputs = weakref.ref(outputs, partial(self._on_dropped, stream, opened.handles))
        if deadline_s is not None:
            left_s = deadline_s - time.monotonic()
            context.timeout_ms = max(1, round(left_s * 1000))
            opened.timer = self._loop.call_later(left_s + DEADLINE_GRACE_S, self._give_up, stream, opened)
        outputs.place(stream, submit.handle)
        stream.submit(submit)

    async def close(self) -> None:
        """Cut the stream: what is open fails with Unavailable and is cancelled in every tier."""
        self._closing = True
        await self._client.close()
        self._changed.set()

    def on_ready(self, stream: SessionStream[Any]) -> None:
        """There is a stream."""
        self._changed.set()

    def on_frame(self, stream: SessionStream[Any], frame: tokenizer_pb2.SessionResponse) -> None:
        """Hand each row, then each end, to whom it is for. A frame that makes no sense ends the stream."""
        if not len(frame.handles) == len(frame.texts) == len(frame.num_tokens):
            raise Internal("a frame came whose columns differ in length", reason="BAD_FRAME")
        extras = {each.handle: each for each in frame.extras}
        for handle, text, num_tokens in zip(frame.handles, frame.texts, frame.num_tokens, strict=True):
            opened = stream.receivers.get(handle)
            if opened is not None and (outputs := opened.outputs()) is not None:
                choice = handle - opened.handles.start
                outputs.add(session_delta(text, num_tokens, choice, extras.get(handle)))
        for finish in frame.finishes:
            self._finish(stream.receivers.pop(finish.handle, None), finish)

    def on_lost(self, stream: SessionStream[Any], receivers: dict[int, OpenRequest], error: TokenwireError) -> None:
        """The stream broke under these."""
        self._num_open -= len(receivers)
        for opened in {id(opened): opened for opened in receivers.values()}.values():
            opened.fail(error)
        self._changed.set()

    def _finish(self, opened: OpenRequest | None, finish: common_pb2.Finish) -> None:
        if opened is None:
            return
        self._num_open -= 1
        opened.ended()
        if (outputs := opened.outputs()) is not None:
            outputs.add(Finished(terminal_from_wire(finish), 0, finish.handle - opened.handles.start))
        self._changed.set()

    def _give_up(self, stream: SessionStream[OpenRequest], opened: OpenRequest) -> None:
        """The time has been up for a while, and the server has not said so, or may not before something is read."""
        if (outputs := opened.outputs()) is not None:
            owed_since_s = outputs.owed_since_s
            if owed_since_s is None or time.monotonic() - owed_since_s < DEADLINE_GRACE_S:
                opened.timer = self._loop.call_later(DEADLINE_GRACE_S, self._give_up, stream, opened)
                return
        self._take_back(stream, opened.handles)
        for handle in opened.handles:
            if stream.receivers.pop(handle, None) is not None:
                self._num_open -= 1
        message = f"the time ran out, and {self._client.target} said nothing for {DEADLINE_GRACE_S:g} s after it"
        opened.fail(DeadlineExceeded(message))
        self._changed.set()

    def _on_dropped(self, stream: SessionStream[OpenRequest], handles: range, _: object) -> None:
        """Nobody can read these any more. Called in any thread, at any time."""
        with suppress(RuntimeError):  # the loop is closed, and the stream with it
            self._loop.call_soon_threadsafe(self._take_back, stream, handles)

    def _take_back(self, stream: SessionStream[OpenRequest], handles: range) -> None:
        for handle in handles:
            if handle in stream.receivers:
                stream.cancel(handle, CancelReason.CLIENT)

    async def _room_until(self, deadline_s: float | None, num_outputs: int) -> SessionStream[Any]:
        try:
            async with asyncio.timeout(None if deadline_s is None else max(0.0, deadline_s - time.monotonic())):
                return await self._room(num_outputs)
        except TimeoutError:
            wanted = "room on the session" if self._client.stream is not None else "a connection"
            raise DeadlineExceeded(f"the time ran out while the request waited for {wanted}") from None

    async def _room(self, num_outputs: int) -> SessionStream[Any]:
        async with self._turn:
            give_up = time.monotonic() + CONNECT_TIMEOUT_S
            while True:
                stream = self._client.stream
                if stream is not None:
                    limit = min(self._max_open, stream.hello.max_requests or self._max_open)
                    _refuse_too_many(num_outputs, limit)
                    if self._num_open + num_outputs <= limit:
                        self._num_open += num_outputs
                        return stream
                    give_up = time.monotonic() + CONNECT_TIMEOUT_S
                else:
                    self._refuse_what_cannot_come(time.monotonic() >= give_up)
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S if stream is None else None):
                        await self._changed.wait()

    def _refuse_what_cannot_come(self, out_of_time: bool) -> None:
        if self._closing or self._client.closed:
            raise Unavailable("the session is closed", reason="SESSION_CLOSED")
        error = self._client.last_error
        if out_of_time or isinstance(error, (Unauthenticated, PermissionDenied, FailedPrecondition)):
            raise error


def _refuse_too_many(num_outputs: int, limit: int) -> None:
    if num_outputs > limit:
        message = f"num_choices {num_outputs} is not allowed: at most {limit} outputs may be open here at once"
        raise InvalidRequest(message, violations=[FieldViolation("num_choices", f"at most {limit}")])
