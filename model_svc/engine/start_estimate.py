"""The least time that a sequence will wait before it starts, from what is ahead of it and how fast steps went lately.

Knows output tokens, slots and seconds; what is ahead is the caller's to say. The bound is one of slots. By the time a
sequence starts, all that were certainly ahead of it have ended, but as many as run beside it and as many as may be
passed over while they wait for a common prefix: a batch of each. One that ended held one of the slots for a step per
output token. Prompts count nothing, since they may be found in the cache.
"""

from collections import deque
from collections.abc import Iterable

MEMORY_S = 10.0
"""What was seen longer ago is not known any more."""
LEAST_SPAN_S = 1.0
"""Speed is taken over spans of this much busy time."""
LEAST_ENDED = 8
"""Ended sequences that it takes to say how long outputs are."""
MAX_ENDED = 256
"""Ended sequences that are remembered."""


class StartEstimate:
    """The best speed of the last seconds, and how long outputs were. `num_slots`: most sequences that run at once."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._spans: deque[tuple[float, float]] = deque(maxlen=64)
        """When each ended, and its steps per second."""
        self._ended: deque[tuple[float, int]] = deque(maxlen=MAX_ENDED)
        """When sequences ended that had started, and their output tokens."""
        self._last_s: float | None = None
        self._span_s, self._span_steps = 0.0, 0

    def on_step(self, now_s: float, *, busy: bool) -> None:
        """A step begins; `busy`: the engine has been computing ever since the last one began."""
        if busy and self._last_s is not None:
            self._span_s += now_s - self._last_s
            self._span_steps += 1
            if self._span_s >= LEAST_SPAN_S:
                self._spans.append((now_s, self._span_steps / self._span_s))
                self._span_s, self._span_steps = 0.0, 0
        self._last_s = now_s

    def on_end(self, now_s: float, num_outputs: int) -> None:
        """A sequence that had started ended with so many output tokens."""
        self._ended.append((now_s, num_outputs))

    def least_wait_s(self, now_s: float, ahead: Iterable[int]) -> float:
        """Seconds that a sequence waits at least; `ahead`: output tokens that each before it may still make.

        Each counts these, or half the median of those that ended lately if that is less: one may stop before its
        limit, and half the median is below the mean of any distribution. 0 where too little was seen lately.
        """
        steps_per_s = max((speed for end_s, speed in self._spans if now_s - end_s <= MEMORY_S), default=0.0)
        lengths = sorted(length for end_s, length in self._ended if now_s - end_s <= MEMORY_S)
        if not steps_per_s or len(lengths) < LEAST_ENDED:
            return 0.0
        typical = lengths[(len(lengths) - 1) // 2] / 2
        num_steps = sum(min(typical, num_outputs) for num_outputs in ahead) / self._num_slots - 2 * typical - 1
        return max(0.0, num_steps / steps_per_s)
