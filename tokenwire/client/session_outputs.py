"""What a session's `submit` returns: the events of one request, read in a coroutine or in ordinary code.

Grants credit as events are taken, so that a slow reader holds a bounded number of tokens; refuses what was not granted.
Knows handles' streams; does not know how they are opened (see `session_core`).
"""

import asyncio
import threading
import time
from types import TracebackType
from typing import Any, Self

from tokenwire.client.events import Event, Finished, Output, TextDelta
from tokenwire.client.loop_thread import LoopThread
from tokenwire.client.streams import StreamState
from tokenwire.errors import Internal, TokenwireError
from tokenwire.requests import CancelReason
from tokenwire.session import SessionStream

MAX_GRANT = 2**32 - 1
"""Tokens that one Credit can say."""


class SessionOutputs(StreamState):
    """What both kinds share. `add` and `fail` are called on the session's event loop."""

    def __init__(self, request_id: str, num_outputs: int, credit: int | None) -> None:
        super().__init__(request_id, num_outputs)
        self.window = credit
        """Tokens that may be sent before they are read; None: no limit."""
        self._taken = [0] * num_outputs
        """Tokens that were read and not granted anew, by choice."""
        self._may_come = [credit] * num_outputs if credit is not None else None
        """Tokens that were granted and have not come, by choice; None: no limit."""
        self._granted_s = 0.0
        """When some were granted last, on the monotonic clock."""
        self._stream: SessionStream[Any] | None = None
        self._first = 0
        self._ended = [False] * num_outputs
        self._error: TokenwireError | None = None

    def place(self, stream: SessionStream[Any], first: int) -> None:
        """It was submitted on this stream, its choices under handles from `first` on."""
        self._stream, self._first = stream, first

    def add(self, event: Event) -> None:
        """Something came. Raises Internal for more tokens than were granted."""
        if self._may_come is not None and isinstance(event, TextDelta):
            self._may_come[event.choice] -= event.num_tokens
            if self._may_come[event.choice] < 0:
                handle, over = self._first + event.choice, -self._may_come[event.choice]
                raise Internal(f"handle {handle}: {over} tokens came that were not granted", reason="CREDIT_EXCEEDED")
        if isinstance(event, Finished):
            self._ended[event.choice] = True
        self._waiting.append(event)
        self._wake()

    def fail(self, error: TokenwireError) -> None:
        """The stream broke: what came can be read, then this is raised."""
        self._error = error
        self._wake()

    @property
    def owed_since_s(self) -> float | None:
        """When something was granted last; None: something waits to be read, and until then nothing need come."""
        return None if self._may_come is not None and self._waiting else self._granted_s

    def _wake(self) -> None:
        raise NotImplementedError

    def _read_one(self) -> Event:
        """Take the next event, and grant what was read where it is due. Call it only when something waits."""
        event = self._next_event()
        if self.window and isinstance(event, TextDelta):
            self._taken[event.choice] += event.num_tokens
            if self._taken[event.choice] >= max(1, self.window // 2) and not self._ended[event.choice]:
                tokens, self._taken[event.choice] = self._taken[event.choice], 0
                self._credit(event.choice, tokens)
        return event

    def _grant_rest(self) -> None:
        """The whole is wanted: where reading grants nothing, all of it is granted now."""
        if self.window == 0:
            self.window = None
            for choice in range(self._num_outputs):
                self._credit(choice, MAX_GRANT)

    def _credit(self, choice: int, tokens: int) -> None:
        assert self._stream is not None
        if self._may_come is not None:
            self._may_come[choice] += tokens
            self._granted_s = time.monotonic()
        self._stream.credit(self._first + choice, tokens)

    def _cancel(self, choice: int | None) -> None:
        assert self._stream is not None
        for each in range(self._num_outputs) if choice is None else (choice,):
            if not self._ended[each]:
                self._stream.cancel(self._first + each, CancelReason.CLIENT)

    def _check_choice(self, choice: int | None) -> None:
        if choice is not None and not (isinstance(choice, int) and choice in range(self._num_outputs)):
            raise ValueError(f"choice {choice!r} is not allowed: 0 to {self._num_outputs - 1}, or None for all")

    def _check_grant(self, tokens: int, choice: int) -> None:
        if choice is None:
            raise ValueError("choice None is not allowed: a grant is for one choice")
        self._check_choice(choice)
        if not (isinstance(tokens, int) and 1 <= tokens <= MAX_GRANT):
            raise ValueError(f"grant(tokens={tokens!r}) is not allowed: 1 to {MAX_GRANT}")


class AsyncSessionOutputs(SessionOutputs):
    """The events of one request on a session: `async for`, `await text()`, `cancel()`, `grant()`.

    Also an asynchronous context manager, whose end cancels. So does the end of the last reference to it.
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
            await self._arrived.wait()
        return self._read_one()

    async def text(self) -> str:
        """The whole text of the only output. Raises what cut it short: an error, the deadline, a cancellation."""
        await self.outputs()
        return self._only_text()

    async def outputs(self) -> list[Output]:
        """Every whole output, by choice; each says in `error` whether it was cut short."""
        self._grant_rest()
        async for _ in self:
            pass
        return self._collector.outputs()

    def cancel(self, choice: int | None = None) -> None:
        """Take one choice back, or all. The terminal event still comes: CANCELLED, if nothing else was first.

        Raises ValueError for a choice that there is not.
        """
        self._check_choice(choice)
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
    """`AsyncSessionOutputs` for ordinary code: an iterator, and a context manager."""

    def __init__(
        self, request_id: str, num_outputs: int, credit: int | None, thread: LoopThread, session: object
    ) -> None:
        """`thread`: of the session's event loop. `session`: stays open as long as this can be read."""
        super().__init__(request_id, num_outputs, credit)
        self._thread = thread
        self._session = session
        self._arrived = threading.Condition()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._collector.num_open:
            self._thread.refuse_to_wait()  # before the lock, which may have been held when the process was forked
        with self._arrived:
            while not self._waiting:
                if self._collector.num_open == 0:
                    raise StopIteration
                if self._error is not None:
                    raise self._error
                self._arrived.wait()
            return self._read_one()

    def text(self) -> str:
        """As `AsyncSessionOutputs.text`."""
        self.outputs()
        return self._only_text()

    def outputs(self) -> list[Output]:
        """As `AsyncSessionOutputs.outputs`."""
        self._grant_rest()
        for _ in self:
            pass
        return self._collector.outputs()

    def cancel(self, choice: int | None = None) -> None:
        """As `AsyncSessionOutputs.cancel`."""
        self._check_choice(choice)
        self._thread.soon(lambda: self._cancel(choice))

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
        self._thread.soon(lambda: parent(choice, tokens))

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
