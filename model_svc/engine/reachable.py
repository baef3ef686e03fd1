"""Refuses a new sequence that cannot start before its deadline, so that its client may ask elsewhere at once.

Knows who waits ahead of it, and the least time that takes. Does not know what runs, nor ends anything.
"""

from collections.abc import Callable

from model_svc.engine.sequence import Sequence
from model_svc.engine.start_estimate import StartEstimate
from model_svc.engine.waiting_queue import WaitingQueue
from tokenwire.errors import Overloaded


class Reachable:
    """For one scheduler; `clock` is monotonic seconds."""

    def __init__(
        self, estimate: StartEstimate, waiting: WaitingQueue, max_context_tokens: int, clock: Callable[[], float]
    ) -> None:
        self._estimate, self._waiting = estimate, waiting
        self._max_context_tokens, self._clock = max_context_tokens, clock
        self._last: tuple[int, Overloaded | None] = (0, None)
        """Request and what was said of it, for all its choices."""

    def refusal(self, sequence: Sequence) -> Overloaded | None:
        """Why a new sequence with a deadline should not wait: even at the best it would start too late."""
        if self._last[0] != sequence.request:
            error = None
            wait_s, left_s = self.least_wait_s(sequence), (sequence.deadline_s or 0.0) - self._clock()
            if wait_s >= left_s > 0:
                message = f"it would wait at least {wait_s:.1f} s, and {left_s:.1f} s are left to it"
                message += " (context.timeout_ms)"
                error = Overloaded(message, reason="DEADLINE_UNREACHABLE", retry_after_s=wait_s - left_s)
            self._last = (sequence.request, error)
        return self._last[1]

    def least_wait_s(self, sequence: Sequence) -> float:
        """Seconds until a new sequence with a deadline starts, at the best.

        Those whose own deadline is earlier may be gone before they take any time.
        """
        latest_s = sequence.deadline_s or 0.0
        stay = (s for s in self._waiting.ahead_of(sequence) if s.deadline_s is None or s.deadline_s >= latest_s)
        outputs = (s.num_outputs_left(self._max_context_tokens) for s in stay)
        return self._estimate.least_wait_s(self._clock(), outputs)
