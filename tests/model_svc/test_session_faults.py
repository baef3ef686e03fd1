"""What a token session does about a bug around it: without an engine, its state is made up."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from model_svc.credits import Lessor
from model_svc.sessions import TokenSession
from tests.fakes.live_model_tier import token_request
from tokenwire.constraints import Constraint
from tokenwire.errors import AlreadyExists, Internal
from tokenwire.requests import CancelReason, FinishReason, Terminal
from tokenwire.status import from_wire
from tokenwire.v1 import common_pb2, model_pb2


class Engine:
    """Takes sequences and does nothing with them."""

    room = (10, 1000)
    epoch = 1

    def __init__(self) -> None:
        self.submitted: list[tuple[Any, int]] = []
        self.num_ids = 0

    def next_id(self) -> int:
        self.num_ids += 1
        return self.num_ids

    def admit(self, sequences: list[Any]) -> None:
        pass

    def submit(self, sequence: Any, sink: Any, handle: int, traceparent: str = "") -> None:
        self.submitted.append((sequence, handle))

    def abort(self, sequence_id: int, reason: CancelReason) -> None:
        pass


class State:
    """Compiles every constraint as the test says."""

    draining = False

    def __init__(self, compiled: Callable[[], Awaitable[str]]) -> None:
        self._compiled = compiled
        self.grammars = self

    def known(self, constraint: Constraint | None) -> str | None:
        return "" if constraint is None else None

    async def compile(self, constraint: Constraint | None) -> str:
        return await self._compiled()

    def check(self, request: Any) -> None:
        pass

    def admission(self) -> "State":
        return self

    def sequences(self, request: Any, next_id: Callable[[], int], grammar: str) -> list[Any]:
        return [SimpleNamespace(sequence_id=next_id()) for _ in range(request.options.num_choices)]

    def load(self) -> common_pb2.Load:
        return common_pb2.Load()


def session_of(engine: Engine, compiled: Callable[[], Awaitable[str]]) -> TokenSession:
    return TokenSession(engine, State(compiled), Lessor(), lambda _: None)  # type: ignore[arg-type]


def submit(
    session: TokenSession, handle: int, *, num_choices: int = 1, request_id: str = "r", regex: str = "a+"
) -> None:
    request = token_request([1, 2], request_id=request_id)
    if regex:
        request.options.constraint.regex = regex
    request.options.num_choices = num_choices
    submits = [model_pb2.TokenSubmit(handle=handle, request=request)]
    session.on_frame(model_pb2.ModelServiceSessionRequest(submits=submits))


def test_a_bug_while_a_constraint_is_compiled_ends_the_request(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> str:
        raise RuntimeError("cannot schedule new futures")

    async def main() -> None:
        session = session_of(Engine(), broken)
        submit(session, 1, num_choices=2)
        async with asyncio.timeout(10):
            frame = await session.next_frame()
        assert frame is not None and [finish.handle for finish in frame.finishes] == [1, 2]
        assert all(isinstance(from_wire(finish.error), Internal) for finish in frame.finishes)
        assert "RuntimeError" in frame.finishes[0].error.message
        session.half_close()
        assert await session.next_frame() is None

    asyncio.run(main())
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.message == "a request failed"


def test_an_id_given_back_while_a_constraint_is_compiled_stays_with_whom_it_went_to() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        engine = Engine()

        async def compiled() -> str:
            await go_on.wait()
            return ""

        session = session_of(engine, compiled)
        submit(session, 1, num_choices=2, request_id="same")
        cancels = [common_pb2.Cancel(handle=1), common_pb2.Cancel(handle=2)]
        session.on_frame(model_pb2.ModelServiceSessionRequest(cancels=cancels[:1]))
        submit(session, 3, request_id="same", regex="")
        assert not engine.submitted, "the other choice holds the id"
        session.on_frame(model_pb2.ModelServiceSessionRequest(cancels=cancels[1:]))
        submit(session, 4, request_id="same", regex="")
        go_on.set()
        async with asyncio.timeout(10):
            while session._compilations:
                await asyncio.sleep(0)
        assert [handle for _, handle in engine.submitted] == [4]
        submit(session, 5, request_id="same", regex="")
        frame = await session.next_frame()
        assert frame is not None and [finish.handle for finish in frame.finishes] == [1, 3, 2, 5]
        assert all(isinstance(from_wire(frame.finishes[place].error), AlreadyExists) for place in (1, 3))
        session.on_end(4, Terminal(FinishReason.LENGTH))
        submit(session, 6, request_id="same", regex="")
        assert [handle for _, handle in engine.submitted] == [4], "its end was not sent yet"
        session.flush()
        await session.next_frame()
        submit(session, 7, request_id="same", regex="")
        assert [handle for _, handle in engine.submitted] == [4, 7], "the id is free again"

    asyncio.run(main())
