"""One event loop in a thread of its own, for all blocking sessions of a process.

Started at its first use and never stopped: whoever waits for it gets an answer, and events that come late find it
running. A fork does not take threads along, and grpc.aio is lost with them.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from tokenwire.errors import FailedPrecondition
from tokenwire.forks import aio_begins

T = TypeVar("T")


class LoopThread:
    """The loop and its thread, which ends with the process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tokenwire-sessions", daemon=True)
        self._begun: set[Future[Any]] = set()
        self._thread.start()

    @property
    def runs_here(self) -> bool:
        """Whether this is the process that has the thread."""
        return self._pid == os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether this is called on the loop's own thread, as a finalizer or a callback may be."""
        return self.runs_here and threading.current_thread() is self._thread

    def refuse_to_wait(self) -> None:
        """Raise FailedPrecondition where a wait for the loop would have no end."""
        if not self.runs_here:
            message = "this session was opened by another process, and a fork does not take it along"
            raise FailedPrecondition(f"{message}: start processes by spawn or forkserver", reason="FORKED")
        if self.is_current:
            message = "this waits for the event loop of the sessions, on whose thread it was called"
            raise FailedPrecondition(f"{message}: call it in another thread", reason="ON_SESSION_LOOP")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns; who stops waiting cancels it. Raises what it raises, and as `refuse_to_wait`."""
        try:
            self.refuse_to_wait()
        except FailedPrecondition:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine for which nobody waits."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)

    def soon(self, action: Callable[[], None]) -> None:
        """Call something on the loop; in a process that does not have the thread, nothing."""
        if self.runs_here:
            self._loop.call_soon_threadsafe(action)


class _Shared:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: LoopThread | None = None


_shared = _Shared()


def loop_thread() -> LoopThread:
    """The process' own, started where there is none yet. Raises FailedPrecondition in a fork of one that has it."""
    aio_begins()
    with _shared.lock:
        if _shared.thread is None:
            _shared.thread = LoopThread()
        return _shared.thread
