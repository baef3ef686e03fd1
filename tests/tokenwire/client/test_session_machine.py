"""The client's side of a Session in any order of events, over a server that says whatever is allowed.

SESSION_EXAMPLES=2000 python -m pytest tests/tokenwire/client/test_session_machine.py     # more than the usual number
"""

import asyncio
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tokenwire import session as session_module
from tokenwire.client import AsyncSessionOutputs, Finished
from tokenwire.client.events import Event
from tokenwire.client.sessions import AsyncSession
from tokenwire.errors import TokenwireError, Unavailable
from tokenwire.session import never
from tokenwire.v1 import common_pb2, tokenizer_pb2

NUM_EXAMPLES = int(os.environ.get("SESSION_EXAMPLES", "200"))
MAX_OPEN = 6
TURNS = 30
"""Of the event loop after each rule: whatever can happen without another word has happened then."""
END = object()


@dataclass
class Sent:
    """What the server did for one handle."""

    credit: int | None
    rows: list[str] = field(default_factory=list)
    num_tokens: int = 0
    is_finished: bool = False


class ServerCall:
    """One Session call as the client holds it, and what the server has seen of it."""

    def __init__(self) -> None:
        self.handles: dict[int, Sent] = {}
        self.is_greeted = self.is_drained = self.is_over = self.is_half_closed = False
        self._down: asyncio.Queue[Any] = asyncio.Queue()
        self._num_up = 0

    async def write(self, frame: Any) -> None:
        assert not self.is_half_closed and frame.HasField("hello") == (self._num_up == 0)
        self._num_up += 1
        for submit in frame.submits:
            assert not self.is_drained, "a Submit after Drain was read"
            for handle in range(submit.handle, submit.handle + (submit.request.options.num_choices or 1)):
                assert handle > max(self.handles, default=0)
                self.handles[handle] = Sent(submit.initial_credit if submit.HasField("initial_credit") else None)
        for credit in frame.credits:
            self.handles[credit.handle].credit += credit.tokens

    async def read(self) -> Any:
        item = await self._down.get()
        if isinstance(item, Exception):
            raise item
        return grpc.aio.EOF if item is END else item

    async def done_writing(self) -> None:
        self.is_half_closed = True

    def cancel(self) -> None:
        self.is_over = True

    @property
    def open(self) -> list[int]:
        return [] if self.is_over else [handle for handle, sent in self.handles.items() if not sent.is_finished]

    def send(self, item: Any) -> None:
        self._down.put_nowait(item)


@dataclass
class Asked:
    """One request of the client's, and what it has read."""

    num_choices: int
    window: int | None
    may_read: asyncio.Semaphore
    outputs: AsyncSessionOutputs | None = None
    events: list[Event] = field(default_factory=list)
    num_granted: int = 0
    error: TokenwireError | None = None
    has_ended: bool = False

    async def run(self, session: AsyncSession) -> None:
        try:
            options = {"num_choices": self.num_choices} if self.num_choices > 1 else {}
            self.outputs = await session.submit("Hello", credit=self.window, **options)
            while True:
                await self.may_read.acquire()
                self.events.append(await anext(self.outputs))
        except StopAsyncIteration:
            pass
        except TokenwireError as error:
            self.error = error
        self.has_ended = True

    def of(self, choice: int) -> list[Event]:
        return [event for event in self.events if event.choice == choice]


REQUESTS = st.tuples(st.sampled_from([1, 1, 2, 4]), st.sampled_from([None, 0, 1, 8]))
"""Choices, and the window of credit."""
MAX_REQUESTS = st.sampled_from([0, 4, 100])
WHICH = st.integers(0, 11)
"""One of those there are."""
ROWS = st.tuples(WHICH, st.integers(0, 4), st.sampled_from([False, False, False, True]))
"""Of which sequence, with how many tokens, and whether it ends."""


class ClientMachine(RuleBasedStateMachine):
    """The client and the server by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.calls: list[ServerCall] = []
        self.asked: list[Asked] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.closed = False
        self.run(self.start())

    async def start(self) -> None:
        self.session = AsyncSession(self.open_call, "server", MAX_OPEN, never)

    def open_call(self) -> ServerCall:
        self.calls.append(ServerCall())
        return self.calls[-1]

    def run(self, coroutine: Any = None) -> None:
        async def turns() -> None:
            if coroutine is not None:
                await coroutine
            for _ in range(TURNS):
                await asyncio.sleep(0)

        self.runner.run(turns())

    def pick(self, which: int, of: list[Any]) -> Any:
        return of[which % len(of)] if of else None

    @initialize(requests=st.lists(REQUESTS, min_size=2, max_size=5), max_requests=MAX_REQUESTS)
    def begin(self, requests: list[tuple[int, int | None]], max_requests: int) -> None:
        """Much has been asked, so that there is something to go wrong."""
        self.greet(0, max_requests)
        for request in requests:
            self.submit(request)

    @rule(request=REQUESTS)
    def submit(self, request: tuple[int, int | None]) -> None:
        async def start() -> None:
            asked = Asked(*request, asyncio.Semaphore(0))
            self.asked.append(asked)
            self.tasks.append(asyncio.ensure_future(asked.run(self.session)))

        self.run(start())

    @rule(which=st.lists(WHICH, min_size=1, max_size=4), number=st.integers(1, 5))
    def read(self, which: list[int], number: int) -> None:
        for each in which:
            asked = self.pick(each, self.asked)
            for _ in range(number):
                asked.may_read.release()
        self.run()

    @rule(which=WHICH, tokens=st.integers(1, 5), choice=st.integers(0, 3), cancels=st.booleans())
    def cancel_or_grant(self, which: int, tokens: int, choice: int, cancels: bool) -> None:
        asked = self.pick(which, [each for each in self.asked if each.outputs is not None])
        if asked is None or choice >= asked.num_choices:
            return
        if cancels:
            asked.outputs.cancel(choice)
        elif asked.window is not None:
            asked.outputs.grant(tokens, choice)
            asked.num_granted += tokens
        self.run()

    @rule(which=WHICH, max_requests=MAX_REQUESTS)
    def greet(self, which: int, max_requests: int) -> None:
        if call := self.pick(which, [call for call in self.calls if not call.is_greeted and not call.is_over]):
            call.is_greeted = True
            hello = common_pb2.Hello(protocol_version=1, max_requests=max_requests)
            call.send(tokenizer_pb2.SessionResponse(hello=hello))
            self.run()

    @rule(rows=st.lists(ROWS, min_size=1, max_size=5))
    def answer(self, rows: list[tuple[int, int, bool]]) -> None:
        for row in rows:
            self.send_row(*row)
        self.run()

    def send_row(self, which: int, num_tokens: int, finishes: bool) -> None:
        """As far as credit allows, and perhaps the end."""
        open_ones = [(call, handle) for call in self.calls for handle in call.open]
        if not open_ones:
            return
        call, handle = self.pick(which, open_ones)
        sent = call.handles[handle]
        if sent.credit is not None:
            num_tokens = min(num_tokens, sent.credit - sent.num_tokens)
        sent.num_tokens += num_tokens
        sent.rows.append(f"{handle}.{len(sent.rows)} ")
        frame = tokenizer_pb2.SessionResponse(handles=[handle], texts=[sent.rows[-1]], num_tokens=[num_tokens])
        if finishes:
            sent.is_finished = True
            frame.finishes.add(handle=handle, reason=common_pb2.FINISH_REASON_LENGTH)
        call.send(frame)

    @rule(which=WHICH, how=st.sampled_from(["", "", "drain", "end", "break"]))
    def leave(self, which: int, how: str) -> None:
        call = self.pick(which, [call for call in self.calls if call.is_greeted and not call.is_over])
        if call is None or not how:
            return
        if how == "drain":
            call.send(tokenizer_pb2.SessionResponse(drain=common_pb2.Drain()))
        else:
            call.send(END if how == "end" else Unavailable("the server is gone"))
        self.run()
        call.is_drained = True

    @precondition(lambda self: not self.closed)
    @rule(really=st.sampled_from([False] * 9 + [True]))
    def close(self, really: bool) -> None:
        if really:
            self.closed = True
            self.run(self.session.close())

    @invariant()
    def check(self) -> None:
        assert sum(len(call.open) for call in self.calls) <= MAX_OPEN
        assert self.closed or sum(not call.is_over and not call.is_drained for call in self.calls) <= 1
        for call in self.calls:
            if call.is_drained and not call.open:
                assert call.is_half_closed or call.is_over, "a drained stream with nothing open is left"
        for asked in self.asked:
            if asked.outputs is not None:
                self.check_request(asked, asked.outputs)

    def check_request(self, asked: Asked, outputs: AsyncSessionOutputs) -> None:
        call = outputs._stream.call
        for choice in range(asked.num_choices):
            sent = call.handles.get(outputs._first + choice)
            if sent is None:
                assert not asked.events, "it waits to be written, or its stream was lost before it was"
                continue
            events = asked.of(choice)
            texts = [event.text for event in events if not isinstance(event, Finished)]
            assert texts == sent.rows[: len(texts)], "each row once, in order"
            ends = [index for index, event in enumerate(events) if isinstance(event, Finished)]
            assert ends in ([], [len(events) - 1]), "one end, and nothing after it"
            if asked.window is not None:
                num_read = sum(event.num_tokens for event in events if not isinstance(event, Finished))
                assert sent.credit <= asked.window + asked.num_granted + num_read, "no more is granted than was read"
        if asked.has_ended and asked.error is None:
            assert all(call.handles[outputs._first + choice].is_finished for choice in range(asked.num_choices))
        if asked.error is not None:
            assert isinstance(asked.error, Unavailable) and call.is_over

    def teardown(self) -> None:
        """Everything that waits is answered; then everyone has had an end, and nothing is held."""
        waiting = deque(range(100))
        while waiting and not all(asked.has_ended for asked in self.asked):
            waiting.popleft()
            self.greet(0, 0)
            self.answer([(0, 0, True)] * MAX_OPEN)
            for asked in self.asked:
                asked.may_read.release()
        self.check()
        assert all(asked.has_ended for asked in self.asked), "everyone had an end"
        assert self.session._core._num_open == 0
        self.run(self.session.close())
        self.runner.close()


def test_any_order_of_events_keeps_the_promises_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_BACKOFF_S", "MAX_BACKOFF_S"):
        monkeypatch.setattr(session_module, name, 0.0)
    run_state_machine_as_test(
        ClientMachine,
        settings=settings(
            max_examples=NUM_EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
