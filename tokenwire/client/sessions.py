"""`AsyncSession` and `Session`: thousands of requests on one stream, with an end, a cancellation and credits each.

    with client.session() as session:
        running = [session.submit(prompt, max_tokens=32) for prompt in prompts]
        texts = [outputs.text() for outputs in running]

Keeps one stream open, moves to another when the server drains, and lets no more be open than both sides allow: `submit`
waits. A request that was on its way when its stream broke fails and is not sent again. Both kinds are one
implementation: ordinary code talks to an event loop in a thread that all its sessions share.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

from tokenwire.channels import aio_channel, told_to_move
from tokenwire.client.conversations import conversation_of
from tokenwire.client.events import Finished, Message, Prompt
from tokenwire.client.loop_thread import loop_thread
from tokenwire.client.messages import session_delta, text_request
from tokenwire.client.options import CallOptions
from tokenwire.client.session_outputs import AsyncSessionOutputs, BlockingSessionOutputs, SessionOutputs
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
from tokenwire.session import SessionClient, SessionStream, ToldToMove
from tokenwire.tls import ClientTls
from tokenwire.v1 import common_pb2, gateway_pb2_grpc, tokenizer_pb2
from tokenwire.wire import terminal_from_wire

CONNECT_TIMEOUT_S = 10.0
LOOK_AGAIN_S = 0.1
"""How often a submit that waits for a connection looks whether there is any use in waiting."""


class SessionCore:
    """The session itself, on its event loop: who receives what, and how much may be open."""

    def __init__(
        self,
        open_call: Callable[[], Any],
        target: str,
        max_open: int,
        told_to_move: ToldToMove,
    ) -> None:
        if max_open < 1:
            raise ValueError(f"max_open {max_open} is not allowed: 1 or more")
        self._client: SessionClient[tuple[SessionOutputs, int]] = SessionClient(
            target, open_call, tokenizer_pb2.SessionRequest, self, told_to_move
        )
        self._max_open = max_open
        self._num_open = 0
        self._turn = asyncio.Lock()
        """Held by the one submit that waits for room; the others wait for it, in order."""
        self._changed = asyncio.Event()
        self._closing = False
        self._client.start()

    async def submit(
        self, request: tokenizer_pb2.TextRequest, outputs: SessionOutputs, num_outputs: int, begun_s: float
    ) -> None:
        """Send a request once there is a connection, and room for all its choices. Raises TokenwireError.

        `begun_s`: when it was asked for, on the monotonic clock: the time it waits here is its own.
        """
        submit = tokenizer_pb2.Submit(request=request, initial_credit=outputs._window)
        context = submit.request.context
        deadline_s = begun_s + context.timeout_ms / 1000 if context.timeout_ms else None
        stream = await self._room_until(deadline_s, num_outputs)
        if deadline_s is not None:
            context.timeout_ms = max(1, round((deadline_s - time.monotonic()) * 1000))
        submit.handle = stream.open([(outputs, choice) for choice in range(num_outputs)])
        outputs.place(stream, submit.handle, deadline_s)
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
            if (receiver := stream.receivers.get(handle)) is not None:
                outputs, choice = receiver
                outputs.add(session_delta(text, num_tokens, choice, extras.get(handle)))
        for finish in frame.finishes:
            self._finish(stream.receivers.pop(finish.handle, None), finish)

    def on_lost(self, stream: SessionStream[Any], receivers: dict[int, Any], error: TokenwireError) -> None:
        """The stream broke under these."""
        self._num_open -= len(receivers)
        for outputs in {id(outputs): outputs for outputs, _ in receivers.values()}.values():
            outputs.fail(error)
        self._changed.set()

    def _finish(self, receiver: tuple[SessionOutputs, int] | None, finish: common_pb2.Finish) -> None:
        if receiver is None:
            return
        outputs, choice = receiver
        self._num_open -= 1
        outputs.add(Finished(terminal_from_wire(finish), 0, choice))
        self._changed.set()

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


class AsyncSession:
    """Many requests on one stream, for asyncio. Made by `AsyncClient.session`; use it in an `async with` block."""

    def __init__(self, open_call: Callable[[], Any], target: str, max_open: int, told_to_move: ToldToMove) -> None:
        self._core = SessionCore(open_call, target, max_open, told_to_move)

    async def submit(
        self, prompt: Prompt, *, credit: int | None = None, **options: Unpack[CallOptions]
    ) -> AsyncSessionOutputs:
        """Continue one prompt. Waits for room; raises InvalidRequest, and what keeps it from being sent.

        `credit`: most tokens of each output that are sent before they are read; reading grants more. 0: none before
        `grant`. None: no limit. Only what the request asks for ends it: what is not wanted any more is to be cancelled.
        """
        return await self._submit(text_request(prompt, options), credit)

    async def chat(
        self, messages: str | Sequence[Message], *, credit: int | None = None, **options: Unpack[CallOptions]
    ) -> AsyncSessionOutputs:
        """Answer a conversation, or one message of a user; as `submit`."""
        return await self._submit(text_request(conversation_of(messages), options), credit)

    async def close(self) -> None:
        """Cancel what is open, and end the stream."""
        await self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _submit(self, made: tuple[tokenizer_pb2.TextRequest, int], credit: int | None) -> AsyncSessionOutputs:
        begun_s = time.monotonic()
        request, num_outputs = made
        outputs = AsyncSessionOutputs(request.context.request_id, num_outputs, _checked(credit))
        await self._core.submit(request, outputs, num_outputs, begun_s)
        return outputs


class Session:
    """Many requests on one stream, for ordinary code; may be shared by threads. Use it in a `with` block.

    It has a connection of its own, on an event loop that all sessions of the process share. A fork does not take it
    along: there it raises FailedPrecondition.
    """

    def __init__(self, target: str, metadata: Sequence[tuple[str, str]], tls: ClientTls | None, max_open: int) -> None:
        self._thread = loop_thread()
        self._channel, self._core = self._thread.run(_open(target, metadata, tls, max_open))

    def submit(
        self, prompt: Prompt, *, credit: int | None = None, **options: Unpack[CallOptions]
    ) -> BlockingSessionOutputs:
        """As `AsyncSession.submit`."""
        return self._submit(text_request(prompt, options), credit)

    def chat(
        self, messages: str | Sequence[Message], *, credit: int | None = None, **options: Unpack[CallOptions]
    ) -> BlockingSessionOutputs:
        """As `AsyncSession.chat`."""
        return self._submit(text_request(conversation_of(messages), options), credit)

    def close(self) -> None:
        """Cancel what is open, and end the stream; who waits in another thread is told. Harmless a second time."""
        if self._thread.runs_here:
            self._thread.run(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _submit(self, made: tuple[tokenizer_pb2.TextRequest, int], credit: int | None) -> BlockingSessionOutputs:
        begun_s = time.monotonic()
        request, num_outputs = made
        outputs = BlockingSessionOutputs(request.context.request_id, num_outputs, _checked(credit), self._thread.soon)
        self._thread.run(self._core.submit(request, outputs, num_outputs, begun_s))
        return outputs

    async def _close(self) -> None:
        await self._core.close()
        await self._channel.close()


async def _open(
    target: str, metadata: Sequence[tuple[str, str]], tls: ClientTls | None, max_open: int
) -> tuple[Any, SessionCore]:
    channel = aio_channel(target, tls)
    stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
    return channel, SessionCore(
        lambda: stub.Session(metadata=tuple(metadata)), target, max_open, partial(told_to_move, channel)
    )


def _checked(credit: int | None) -> int | None:
    if credit is not None and not (isinstance(credit, int) and 0 <= credit < 2**32):
        raise ValueError(f"credit {credit!r} is not allowed: 0 or more tokens, or None for no limit")
    return credit
