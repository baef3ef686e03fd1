"""Blocking work of calls that bring no prompt, in a thread of its own, so that no prompt waits for it.

One piece runs at a time, and those that wait take turns: who has much to do hands it over in pieces, and others' come
between them. What waits is dropped at once when its caller leaves; what has begun runs to its end, since the library
cannot be stopped. Knows nothing of what it runs.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tokenwire.errors import Overloaded, Unavailable

T = TypeVar("T")

RETRY_AFTER_S = 0.5


class CallThread:
    """Close it."""

    def __init__(self, name: str, *, max_queued: int = 1024) -> None:
        """`name`: of the thread. `max_queued`: pieces that may be there at once, the one that runs among them."""
        self._max_queued = max_queued
        self.num_queued = 0
        """Pieces whose callers wait for them."""
        self._turn = asyncio.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises Overloaded where too many wait, Unavailable once it is closed."""
        if self.num_queued >= self._max_queued:
            raise Overloaded(
                f"{self._max_queued} calls wait for the tokenizer already", reason="ENCODE_QUEUE_FULL",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        self.num_queued += 1
        try:
            await self._turn.acquire()
            try:
                running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            except RuntimeError:
                self._turn.release()
                raise Unavailable("the tokenizer tier is shutting down", reason="SHUTTING_DOWN") from None
            running.add_done_callback(lambda _: self._turn.release())
            return await asyncio.shield(running)  # whoever leaves keeps the turn until the thread is free
        finally:
            self.num_queued -= 1

    def close(self) -> None:
        """Take no more; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
