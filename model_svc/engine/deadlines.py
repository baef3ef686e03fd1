"""When which sequence's time runs out. Knows ids and times; forgets those of ended sequences when they add up."""

import heapq
from collections.abc import Iterator, Mapping

from model_svc.engine.sequence import Sequence

MAX_STALE = 64
"""Deadlines of ended sequences that may be kept, beyond as many as there are sequences."""


class Deadlines:
    """A heap over the open sequences, which stay the caller's."""

    def __init__(self, sequences: Mapping[int, Sequence]) -> None:
        self._sequences = sequences
        self._heap: list[tuple[float, int]] = []

    @property
    def next_s(self) -> float | None:
        """No deadline is earlier than this one, which may be an ended sequence's; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def add(self, sequence: Sequence) -> None:
        """Watch a sequence that has a deadline; no effect on one without."""
        if sequence.deadline_s is None:
            return
        if len(self._heap) > 2 * len(self._sequences) + MAX_STALE:
            self._heap = [entry for entry in self._heap if entry[1] in self._sequences]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (sequence.deadline_s, sequence.sequence_id))

    def take_due(self, now_s: float) -> Iterator[Sequence]:
        """Every open sequence whose time has run out, once. Those given may be ended meanwhile."""
        while self._heap and self._heap[0][0] <= now_s:
            sequence = self._sequences.get(heapq.heappop(self._heap)[1])
            if sequence is not None:
                yield sequence
