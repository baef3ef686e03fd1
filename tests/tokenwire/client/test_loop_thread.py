"""The event loop that all blocking sessions of a process share."""

import asyncio
import queue
import threading
from collections.abc import Callable

import pytest

from tests.fakes.background import in_background
from tests.fakes.live_gateway import gateway_over_fake
from tokenwire.client import Client
from tokenwire.client.loop_thread import LoopThread, _shared, loop_thread
from tokenwire.errors import FailedPrecondition, Unavailable


@pytest.fixture
def fresh_thread(monkeypatch: pytest.MonkeyPatch) -> LoopThread:
    """The process' own loop for one test, so that one which it blocks is no other's."""
    thread = LoopThread()
    monkeypatch.setattr(_shared, "thread", thread)
    return thread


def test_there_is_one_and_sessions_leave_it_running() -> None:
    for _ in range(3):
        with Client("127.0.0.1:1") as client, client.session(), client.session():
            assert [thread.name for thread in threading.enumerate()].count("tokenwire-sessions") == 1
    assert loop_thread().run(asyncio.sleep(0, 5)) == 5


def test_what_is_raised_comes_out_and_who_stops_waiting_cancels() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop_thread().run(broken())


def on_its_thread(action: Callable[[], object]) -> object:
    """What comes of something called on the loop's own thread."""
    found: queue.Queue[object] = queue.Queue()

    def call() -> None:
        try:
            found.put(action())
        except Exception as error:
            found.put(error)

    loop_thread().soon(call)
    return found.get(timeout=20)


def test_who_would_wait_for_the_loop_on_its_own_thread_is_refused(fresh_thread: LoopThread) -> None:
    error = on_its_thread(lambda: fresh_thread.run(asyncio.sleep(0)))
    assert isinstance(error, FailedPrecondition) and error.reason == "ON_SESSION_LOOP"
    assert fresh_thread.run(asyncio.sleep(0, 5)) == 5, "it goes on"


def test_a_session_may_be_closed_on_the_loops_own_thread(fresh_thread: LoopThread) -> None:
    with Client("127.0.0.1:1") as client:
        session = client.session()
        assert on_its_thread(session.close) is None
        with pytest.raises(Unavailable, match="closed"):
            session.submit("a")


def test_outputs_are_not_waited_for_on_the_loops_own_thread(fresh_thread: LoopThread) -> None:
    with in_background(gateway_over_fake()) as (_, live), Client(live.grpc_target) as client:
        with client.session() as session, session.submit("!hang") as outputs:
            error = on_its_thread(lambda: next(outputs))
            assert isinstance(error, FailedPrecondition) and error.reason == "ON_SESSION_LOOP"
