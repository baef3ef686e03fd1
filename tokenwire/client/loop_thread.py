"""One event loop in a thread of its own, for all blocking sessions of a process.

Started at its first use and never stopped: whoever waits for it gets an answer, and events that come late find it
running. A fork does not take threads along; a child process gets a loop of its own.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tokenwire.errors import FailedPrecondition

T = TypeVar("T")


class LoopThread:
    """The loop and its thread, which ends with the process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="tokenwire-sessions", daemon=True).start()

    @property
    def runs_here(self) -> bool:
        """Whether this is the process that has the thread."""
        return self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns; who stops waiting cancels it. Raises what it raises, and FailedPrecondition."""
        if not self.runs_here:
            coroutine.close()
            message = "this session was opened by another process, and a fork does not take it along"
            raise FailedPrecondition(f"{message}: open one in each process", reason="FORKED")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def soon(self, action: Callable[[], None]) -> None:
        """Call something on the loop; in a process that does not have the thread, nothing."""
        if self.runs_here:
            self._loop.call_soon_threadsafe(action)


class _Shared:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As in a process that has not used it: a fork may have happened while somebody held the lock."""
        self.lock = threading.Lock()
        self.thread: LoopThread | None = None


_shared = _Shared()
os.register_at_fork(after_in_child=_shared.reset)


def loop_thread() -> LoopThread:
    """The process' own, started where there is none yet."""
    with _shared.lock:
        if _shared.thread is None:
            _shared.thread = LoopThread()
        return _shared.thread
