"""The server's side of a Session: Hello, then reading and writing side by side until both are done.

Serves both Sessions of the contract. What frames mean is the `ServerSession`'s business.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import grpc

from tokenwire.errors import FailedPrecondition, InvalidRequest, NotFound
from tokenwire.requests import MAX_CHOICES
from tokenwire.session import MAX_HANDLE, PROTOCOL_VERSION
from tokenwire.v1 import common_pb2

AGE_JITTER = 1.1
"""gRPC tells connections to go at their age, give or take a tenth."""
TOLD_AFTER_S = 1.0
"""How long a peer has to hear that by itself."""
MOST_SUBMITS = 32
"""Taken in one turn of the event loop."""


class ServerSession(Protocol):
    """One peer's session."""

    def hello(self) -> Any:
        """The first frame down."""

    def on_frame(self, frame: Any) -> None:
        """Take a frame up. A TokenwireError ends the whole session with that status: only for protocol violations."""

    def half_close(self) -> None:
        """The peer submits nothing more; what runs goes on."""

    def drain(self, reason: str, grace_s: float) -> None:
        """Ask the peer to put new Submits on another stream. `grace_s`: when what still runs is cut; 0: never."""

    async def next_frame(self) -> Any | None:
        """Wait for something to send; None once half-closed and every sequence has ended.

        Called one at a time, so what comes while a frame is on its way merges into the next.
        """

    def close(self) -> None:
        """The stream is over: cancel whatever is still open. Called exactly once."""


async def run_session(
    frames: AsyncIterator[Any],
    context: grpc.aio.ServicerContext,
    session: ServerSession,
    *,
    max_age_s: float = 0.0,
    age_grace_s: float = 0.0,
) -> None:
    """Serve one session to its end. Raises the session's protocol errors; `session.close` is always called.

    `max_age_s`: as of the server's connections. Once this one has been told to go, so is a peer that did not hear it:
    the new stream comes on a new connection. 0: never.
    """
    tasks: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    aged = AGE_JITTER * max_age_s + TOLD_AFTER_S
    timer = loop.call_later(aged, session.drain, "connections are renewed", age_grace_s) if max_age_s else None
    try:
        first = await anext(frames, None)
        hello = session.hello()
        check_hello(first, hello.hello)
        await context.write(hello)
        reader = asyncio.ensure_future(_read(frames, session))
        writer = asyncio.ensure_future(_write(context, session))
        tasks = [reader, writer]
        await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        if reader.done():
            reader.result()
            session.half_close()
        await writer
    finally:
        if timer is not None:
            timer.cancel()
        session.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # what mattered has been raised above


def check_hello(first: Any | None, ours: common_pb2.Hello) -> None:
    """Raise InvalidRequest, NotFound or FailedPrecondition unless the first frame is a Hello that suits `ours`."""
    if first is None or not first.HasField("hello"):
        raise InvalidRequest("the first frame of a session must carry hello", reason="NO_HELLO")
    if first.hello.protocol_version != PROTOCOL_VERSION:
        theirs = first.hello.protocol_version
        message = f"hello.protocol_version {theirs} is not known here: this server speaks {PROTOCOL_VERSION}"
        raise FailedPrecondition(message, reason="PROTOCOL_VERSION")
    if type(first)(hello=first.hello) != first:
        raise InvalidRequest("the first frame of a session carries hello alone", reason="NO_HELLO")
    served = {card.name: card.fingerprint.vocabulary for card in ours.models}
    for card in first.hello.models:
        if card.name and card.name not in served:
            names = ", ".join(served) or "nothing yet"
            raise NotFound(
                f"hello.models: {card.name!r:.80} is not served here; served is {names}", reason="MODEL_NOT_FOUND"
            )
        known, meant = served.get(card.name, ""), card.fingerprint.vocabulary
        if known and meant and known != meant:
            message = f"hello.models: the vocabulary of {card.name!r:.80} is {known!r} here, not {meant!r:.80}"
            raise FailedPrecondition(message, reason="FINGERPRINT_MISMATCH")


def handles_of(first: int, num_choices: int, last_handle: int) -> range:
    """The handles of a Submit, one per choice; one alone when there are too many choices, to carry the refusal.

    Raises InvalidRequest, which ends the session, when `first` is not greater than `last_handle` or they run out.
    """
    handles = range(first, first + (num_choices if 1 <= num_choices <= MAX_CHOICES else 1))
    if not last_handle < first <= handles[-1] <= MAX_HANDLE:
        message = f"handle {first} is not greater than {last_handle}, the last one of this stream"
        raise InvalidRequest(f"{message}, or its choices run past {MAX_HANDLE}", reason="HANDLE_ORDER")
    return handles


async def _read(frames: AsyncIterator[Any], session: ServerSession) -> None:
    drained = False
    async for frame in frames:
        if frame.HasField("hello"):
            raise InvalidRequest("hello came twice: it belongs in the first frame alone", reason="HELLO_TWICE")
        if drained and frame.submits:
            raise InvalidRequest("a Submit came after Drain: open another stream for it", reason="DRAINED")
        for part in _slices(frame):
            session.on_frame(part)
            if part is not frame:
                await asyncio.sleep(0)
        if frame.HasField("drain"):
            drained = True
            session.half_close()


def _slices(frame: Any) -> Iterator[Any]:
    """The frame; one with very many Submits as several that mean the same: others have their turn in between."""
    if len(frame.submits) <= MOST_SUBMITS:
        yield frame
        return
    for begin in range(0, len(frame.submits), MOST_SUBMITS):
        yield type(frame)(cancels=frame.cancels, submits=frame.submits[begin : begin + MOST_SUBMITS])
    rest = type(frame)()
    rest.CopyFrom(frame)
    del rest.submits[:]
    yield rest


async def _write(context: grpc.aio.ServicerContext, session: ServerSession) -> None:
    while (frame := await session.next_frame()) is not None:
        await context.write(frame)
