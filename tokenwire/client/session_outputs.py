"""What a session's `submit` returns: the events of one request, read in a coroutine or in ordinary code.

Grants credit as events are taken, so that a slow reader holds a bounded number of tokens; refuses what was not granted;
ends a request by this side's clock where the server does not. Knows handles' streams; does not know how they are opened
(see `sessions`).
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tokenwire.client.events import Event, Finished, Output, TextDelta
from tokenwire.client.streams import StreamState
from tokenwire.errors import Internal, TokenwireError
from tokenwire.requests import CancelReason, FinishReason, Terminal, Usage
from tokenwire.session import SessionStream

LATE_S = 1.0
"""So much longer than a request's time limit its end is waited for: the server's own may be on its way."""


class SessionOutputs(StreamState):
    """What both kinds share. `add` and `fail` are called on the session's event loop."""

    def __init__(self, request_id: str, num_outputs: int, credit: int | None) -> None:
        super().__init__(request_id, num_outputs)
        self._window = credit
        self._taken = [0] * num_outputs
        """Tokens that were read and not granted anew, by choice."""
        self._may_come = [credit] * num_outputs if credit is not None else None
        """Tokens that were granted and have not come, by choice; None: no limit."""
        self._came = [0] * num_outputs
        self._until_s: float | None = None
        """When the server's end has not come in time, on the monotonic clock."""
        self._stream: SessionStream[Any] | None = None
        self._first = 0
        self._ended = [False] * num_outputs
        self._error: TokenwireError | None = None

    def place(self, stream: SessionStream[Any], first: int, deadline_s: float | None) -> None:
        """It was submitted on this stream, its choices under handles from `first` on."""
        self._stream, self._first = stream, first
        self._until_s = None if deadline_s is None else deadline_s + LATE_S

    def add(self, event: Event) -> None:
        """Something came. Raises Internal for more tokens than were granted."""
        if isinstance(event, TextDelta):
            self._count(event)
        if self._ended[event.choice]:
            return  # it was over by this side's clock
        if isinstance(event, Finished):
            self._ended[event.choice] = True
        self._waiting.append(event)
        self._wake()

    def fail(self, error: TokenwireError) -> None:
        """The stream broke: what came can be read, then this is raised."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        raise NotImplementedError

    def _count(self, delta: TextDelta) -> None:
        self._came[delta.choice] += delta.num_tokens
        if self._may_come is None:
            return
        self._may_come[delta.choice] -= delta.num_tokens
        if self._may_come[delta.choice] < 0:
            handle, over = self._first + delta.choice, -self._may_come[delta.choice]
            raise Internal(f"handle {handle}: {over} tokens came that were not granted", reason="CREDIT_EXCEEDED")

    def _left_s(self) -> float | None:
        """How long something may be waited for; None: for ever."""
        return None if self._until_s is None else max(0.0, self._until_s - time.monotonic())

    def _end_what_is_late(self) -> None:
        """Called by the reader when nothing waits. What came stands; the server is told, and frees the places."""
        if self._left_s() != 0.0:
            return
        for choice, ended in enumerate(self._ended):
            if not ended:
                self.cancel(choice)
                self.add(Finished(Terminal(FinishReason.DEADLINE, Usage(0, 0, self._came[choice])), 0, choice))

    def cancel(self, choice: int | None = None) -> None:
        """Take one choice back, or all. The terminal event still comes: CANCELLED, if nothing else was first."""
        raise NotImplementedError

    def _read_one(self) -> Event:
        """Take the next event, and grant what was read where it is due. Call it only when something waits."""
        event = self._next_event()
        if self._window and isinstance(event, TextDelta):
            self._taken[event.choice] += event.num_tokens
            if self._taken[event.choice] >= max(1, self._window // 2) and not self._ended[event.choice]:
                tokens, self._taken[event.choice] = self._taken[event.choice], 0
                self._credit(event.choice, tokens)
        return event

    def _credit(self, choice: int, tokens: int) -> None:
        assert self._stream is not None
        if self._may_come is not None:
            self._may_come[choice] += tokens
        self._stream.credit(self._first + choice, tokens)

    def _cancel(self, choice: int | None) -> None:
        assert self._stream is not None
        for each in range(self._num_outputs) if choice is None else (choice,):
            if self._first + each in self._stream.receivers:
                self._stream.cancel(self._first + each, CancelReason.CLIENT)

    def _check_grant(self, tokens: int, choice: int) -> None:
        if not (isinstance(tokens, int) and 1 <= tokens < 2**32 and choice in range(self._num_outputs)):
            raise ValueError(
                f"grant(tokens={tokens}, choice={choice}) is not allowed: 1 or more, of one of the choices"
            )


class AsyncSessionOutputs(SessionOutputs):
    """The events of one request on a session: `async for`, `await text()`, `cancel()`, `grant()`.

    An `async with` block cancels at its end.
    """

    def __init__(self, request_id: str, num_outputs: int, credit: int | None) -> None:
        super().__init__(request_id, num_outputs, credit)
        self._arrived = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._collector.num_open == 0:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._left_s()):
                    await self._arrived.wait()
            if not self._waiting and self._error is None:
                self._end_what_is_late()
        return self._read_one()

    async def text(self) -> str:
        """The whole text of the only output. Raises what cut it short: an error, the deadline, a cancellation."""
        await self.outputs()
        return self._only_text()

    async def outputs(self) -> list[Output]:
        """Every whole output, by choice; each says in `error` whether it was cut short."""
        async for _ in self:
            pass
        return self._collector.outputs()

    def cancel(self, choice: int | None = None) -> None:
        """As the base's."""
        self._cancel(choice)

    def grant(self, tokens: int, choice: int = 0) -> None:
        """Let the server send more tokens than were granted by reading. Raises ValueError."""
        self._check_grant(tokens, choice)
        self._credit(choice, tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.cancel()

    def _wake(self) -> None:
        self._arrived.set()


class BlockingSessionOutputs(SessionOutputs):
    """`AsyncSessionOutputs` for ordinary code: an iterator and a context manager whose end cancels."""

    def __init__(
        self, request_id: str, num_outputs: int, credit: int | None, soon: Callable[[Callable[[], None]], None]
    ) -> None:
        """`soon`: calls something on the session's event loop."""
        super().__init__(request_id, num_outputs, credit)
        self._soon = soon
        self._arrived = threading.Condition()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        with self._arrived:
            while not self._waiting:
                if self._collector.num_open == 0:
                    raise StopIteration
                if self._error is not None:
                    raise self._error
                self._arrived.wait(self._left_s())
                if not self._waiting and self._error is None:
                    self._end_what_is_late()
            return self._read_one()

    def text(self) -> str:
        """As `AsyncSessionOutputs.text`."""
        self.outputs()
        return self._only_text()

    def outputs(self) -> list[Output]:
        """As `AsyncSessionOutputs.outputs`."""
        for _ in self:
            pass
        return self._collector.outputs()

    def cancel(self, choice: int | None = None) -> None:
        """As the base's."""
        self._soon(lambda: self._cancel(choice))

    def grant(self, tokens: int, choice: int = 0) -> None:
        """As `AsyncSessionOutputs.grant`."""
        self._check_grant(tokens, choice)
        self._credit(choice, tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.cancel()

    def _credit(self, choice: int, tokens: int) -> None:
        parent = super()._credit
        self._soon(lambda: parent(choice, tokens))

    def add(self, event: Event) -> None:
        """As the base's, under the reader's lock."""
        with self._arrived:
            super().add(event)

    def fail(self, error: TokenwireError) -> None:
        """As the base's, under the reader's lock."""
        with self._arrived:
            super().fail(error)

    def _wake(self) -> None:
        self._arrived.notify_all()
