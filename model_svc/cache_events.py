"""Which prompt prefixes the KV cache holds, as numbered events for routers.

Keeps the set of hashes and the last events; whoever fell further behind, or knows another epoch, gets a snapshot first.
Knows hashes and numbers; does not know the wire.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

from tokenwire.cache_events import CacheChange, CacheEvent
from tokenwire.errors import Overloaded

MAX_KEPT_EVENTS = 4096
MAX_SNAPSHOT_HASHES = 65_536
"""In one event: half a megabyte."""
MAX_SUBSCRIBERS = 64
RETRY_AFTER_S = 10.0


class CacheEventLog:
    """What one engine's cache holds, and how it came to that. `subscribe` follows it over restarts."""

    def __init__(self) -> None:
        self.epoch = 0
        """That of the engine; 0 while there is none."""
        self.held: set[int] = set()
        self._events: deque[CacheEvent] = deque(maxlen=MAX_KEPT_EVENTS)
        self._number = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._num_subscribers = 0

    def restart(self, epoch: int) -> None:
        """Another engine, whose cache is empty; 0: the engine is gone."""
        self.epoch, self._number = epoch, 0
        self.held.clear()
        self._events.clear()
        self._wake()

    def record(self, stored: Sequence[int], removed: Sequence[int]) -> None:
        """What one step changed."""
        for change, hashes in ((CacheChange.REMOVED, removed), (CacheChange.STORED, stored)):
            if hashes:
                self._number += 1
                self._events.append(CacheEvent(self.epoch, self._number, change, tuple(hashes)))
        if stored or removed:
            self.held.difference_update(removed)
            self.held.update(stored)
            self._wake()

    def close(self) -> None:
        """End every subscription."""
        self._closed = True
        self._wake()

    async def subscribe(self, epoch: int = 0, number: int = 0) -> AsyncIterator[CacheEvent]:
        """Events after the one given, for ever; a snapshot first where they are gone, or the epoch is another.

        Raises Overloaded when there are MAX_SUBSCRIBERS.
        """
        if self._num_subscribers >= MAX_SUBSCRIBERS:
            message = f"{MAX_SUBSCRIBERS} subscribers follow the cache already"
            raise Overloaded(message, reason="TOO_MANY_SUBSCRIBERS", retry_after_s=RETRY_AFTER_S)
        self._num_subscribers += 1
        try:
            async for event in self._follow(epoch, number):
                yield event
        finally:
            self._num_subscribers -= 1

    async def _follow(self, epoch: int, number: int) -> AsyncIterator[CacheEvent]:
        while not self._closed:
            changed = self._changed
            if not self.epoch:
                await changed.wait()
                continue
            for event in self._after(epoch, number):
                yield event
                epoch, number = event.epoch, event.number
                if epoch != self.epoch or self._closed:
                    break
            else:
                if (epoch, number) == (self.epoch, self._number):
                    await changed.wait()

    def _after(self, epoch: int, number: int) -> list[CacheEvent]:
        first_kept = self._number - len(self._events) + 1
        if epoch != self.epoch or not first_kept - 1 <= number <= self._number:
            return list(self._snapshot())
        return list(self._events)[number - first_kept + 1 :]

    def _snapshot(self) -> Iterator[CacheEvent]:
        held = tuple(self.held)
        for start in range(0, max(1, len(held)), MAX_SNAPSHOT_HASHES):
            end = start + MAX_SNAPSHOT_HASHES
            yield CacheEvent(self.epoch, self._number, CacheChange.SNAPSHOT, held[start:end], end < len(held))

    def _wake(self) -> None:
        """Wake everyone who waits, once: later waiters get a new event."""
        self._changed.set()
        self._changed = asyncio.Event()
