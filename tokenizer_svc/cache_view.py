"""What one replica's prefix cache holds, as its numbered events tell, and what it will soon hold of our own prompts.

A hint for routing, never a promise: it may lag, and what does not fit into its bound is taken as not cached. Knows
hashes and numbers; does not know the wire, prompts or how hashes are made (`tokenwire.block_hash`).
"""

import time
from collections.abc import Callable, Iterable, Sequence

from tokenwire.cache_events import CacheChange, CacheEvent

MAX_HASHES = 262_144
"""Blocks remembered per replica, about 70 bytes each: four million positions in blocks of 16."""
MAX_EXPECTED = 32_768
"""Blocks of own prompts remembered per replica until its events name them."""
EXPECTED_FOR_S = 10.0
"""How long an own prompt counts as cached before an event says so: until it is computed, or was not cached at all."""


class CacheView:
    """One replica's cache. `scheme` and `block_size` are what its hashes mean; an empty scheme: it sends none."""

    def __init__(self, *, max_hashes: int = MAX_HASHES, clock: Callable[[], float] = time.monotonic) -> None:
        self.scheme = ""
        self.block_size = 0
        self.epoch = 0
        self._max_hashes = max_hashes
        self._clock = clock
        self._number = 0
        self._partial = False
        """A snapshot has begun and not ended."""
        self._held: set[int] = set()
        self._expected: dict[int, float] = {}
        """Until when each is expected, the soonest first."""

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and number of the last event that needs no repetition; (0, 0): a snapshot is needed."""
        return (0, 0) if self._partial else (self.epoch, self._number)

    def __len__(self) -> int:
        """Blocks known to be held."""
        return len(self._held)

    def connect(self, epoch: int, scheme: str, block_size: int) -> None:
        """The replica said Hello. What was known of another epoch or scheme is forgotten."""
        if (epoch, scheme, block_size) != (self.epoch, self.scheme, self.block_size):
            self.scheme, self.block_size = scheme, block_size
            self._begin(epoch)

    def apply(self, event: CacheEvent) -> bool:
        """Take in an event, in the order they came. False: events before it are missing; ask again from `position`."""
        if event.change is CacheChange.SNAPSHOT:
            self._take_snapshot(event)
            return True
        if event.epoch == self.epoch and event.number <= self._number and not self._partial:
            return True  # known already
        if event.epoch != self.epoch or event.number != self._number + 1 or self._partial:
            return False
        self._number = event.number
        for hashed in event.hashes:
            self._expected.pop(hashed, None)
        if event.change is CacheChange.STORED:
            self._store(event.hashes)
        else:
            self._held.difference_update(event.hashes)
        return True

    def expect(self, hashes: Iterable[int]) -> None:
        """A prompt with these blocks was just sent there: they count as held for a while."""
        until_s = self._clock() + EXPECTED_FOR_S
        for hashed in hashes:
            if hashed not in self._held:
                self._expected.pop(hashed, None)
                self._expected[hashed] = until_s
        self._drop_expected()

    def holds(self, hashed: int) -> bool:
        """Whether this block is there, or will soon be."""
        if hashed in self._held:
            return True
        until_s = self._expected.get(hashed)
        return until_s is not None and until_s > self._clock()

    def _take_snapshot(self, event: CacheEvent) -> None:
        if not self._partial or (event.epoch, event.number) != (self.epoch, self._number):
            if event.epoch != self.epoch:
                self._expected.clear()
            self._held.clear()
        self.epoch, self._number, self._partial = event.epoch, event.number, event.continues
        self._store(event.hashes)

    def _begin(self, epoch: int) -> None:
        self.epoch, self._number, self._partial = epoch, 0, False
        self._held.clear()
        self._expected.clear()

    def _store(self, hashes: Sequence[int]) -> None:
        """Those known first stay: beginnings of prompts are stored first, and nothing is found without them."""
        self._held.update(hashes[: max(0, self._max_hashes - len(self._held))])

    def _drop_expected(self) -> None:
        now_s = self._clock()
        while self._expected:
            first = next(iter(self._expected))
            if self._expected[first] > now_s and len(self._expected) <= MAX_EXPECTED:
                return
            del self._expected[first]
