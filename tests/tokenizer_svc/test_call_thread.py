import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tokenizer_svc.call_thread import CallThread
from tokenwire.errors import Overloaded


class Gate:
    """Work that waits in its thread."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def work(self) -> bool:
        self.begun.set()
        return self.open.wait(30)


@asynccontextmanager
async def busy(max_queued: int = 10) -> AsyncIterator[tuple[CallThread, Gate, "asyncio.Future[bool]"]]:
    """A thread whose first work waits."""
    thread, gate = CallThread("calls", max_queued=max_queued), Gate()
    running = asyncio.ensure_future(thread.run(gate.work))
    while not gate.begun.is_set():
        await asyncio.sleep(0.001)
    try:
        yield thread, gate, running
    finally:
        gate.open.set()
        thread.close()


async def waiting(awaitable: Awaitable[object]) -> "asyncio.Future[object]":
    future = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    return future


def test_the_number_of_calls_is_bounded() -> None:
    async def main() -> None:
        async with busy(max_queued=2) as (thread, gate, running):
            second = await waiting(thread.run(lambda: 2))
            with pytest.raises(Overloaded) as caught:
                await thread.run(lambda: 3)
            assert caught.value.retry_after_s
            gate.open.set()
            assert (await running, await second, await thread.run(lambda: 3)) == (True, 2, 3)

    asyncio.run(main())


def test_who_leaves_before_the_turn_comes_is_dropped() -> None:
    async def main() -> None:
        done: list[int] = []
        async with busy(max_queued=2) as (thread, gate, running):
            gone = await waiting(thread.run(lambda: done.append(1)))
            gone.cancel()
            await asyncio.sleep(0)
            kept = await waiting(thread.run(lambda: done.append(2)))
            gate.open.set()
            await asyncio.gather(running, kept)
            assert done == [2]

    asyncio.run(main())


def test_what_has_begun_runs_to_its_end_before_the_next() -> None:
    async def main() -> None:
        async with busy() as (thread, gate, running):
            running.cancel()
            next_begun = threading.Event()
            after = await waiting(thread.run(next_begun.set))
            assert running.cancelled() and not next_begun.is_set()
            gate.open.set()
            await after

    asyncio.run(main())


def test_those_who_wait_take_turns_and_an_error_is_its_callers() -> None:
    async def main() -> None:
        done: list[str] = []

        async def call(name: str, thread: CallThread) -> None:
            for number in range(3):
                await thread.run(noting(f"{name}{number}"))

        def noting(name: str) -> Callable[[], None]:
            return lambda: done.append(name)

        async with busy() as (thread, gate, _):
            calls = [await waiting(call(name, thread)) for name in "ab"]
            broken = await waiting(thread.run(lambda: 1 // 0))
            gate.open.set()
            await asyncio.gather(*calls)
            assert done == ["a0", "b0", "a1", "b1", "a2", "b2"]
            with pytest.raises(ZeroDivisionError):
                await broken

    asyncio.run(main())


def test_who_waits_when_it_is_closed_is_told() -> None:
    async def main() -> None:
        async with busy() as (thread, gate, running):
            waiters = [await waiting(thread.run(lambda: 2)) for _ in range(3)]
            thread.close()
            gate.open.set()
            assert await running
            async with asyncio.timeout(10):
                found = await asyncio.gather(*waiters, return_exceptions=True)
            assert [getattr(each, "reason", each) for each in found] == ["SHUTTING_DOWN"] * 3

    asyncio.run(main())
