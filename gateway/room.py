"""How many outputs are generated at once, and who makes way when there are too many.

The lowest priorities do, last come first. Only what has not begun makes way: text that was sent is not taken back. Does
not know tiers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.submission import Submission
from tokenwire.errors import InvalidRequest, Overloaded

RETRY_AFTER_S = 1.0


class Room:
    """What is open. Every submission that enters leaves once."""

    def __init__(self, max_outputs: int) -> None:
        self.num_outputs = 0
        """Prompts times choices of what is open, and inputs that are embedded."""
        self.max_outputs = max_outputs
        self._open: dict[Submission, None] = {}
        """By arrival."""
        self._priorities: Counter[int] = Counter()

    def enter(self, submission: Submission) -> None:
        """It is open from now on."""
        self._open[submission] = None
        self._priorities[submission.context.priority] += 1
        self.num_outputs += submission.num_choices

    def leave(self, submission: Submission) -> None:
        """It has ended."""
        del self._open[submission]
        self.num_outputs -= submission.num_choices
        priority = submission.context.priority
        self._priorities[priority] -= 1
        if not self._priorities[priority]:
            del self._priorities[priority]

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is open is counted right, and within its bound."""
        submitted = sum(submission.num_choices for submission in self._open)
        if not submitted <= self.num_outputs <= self.max_outputs:
            raise AssertionError(
                f"{self.num_outputs} outputs are counted, of {submitted} and at most {self.max_outputs}"
            )
        if self._priorities != Counter(submission.context.priority for submission in self._open):
            raise AssertionError("the priorities of what is open are miscounted")

    @contextmanager
    def taken(self, num_inputs: int, priority: int) -> Iterator[None]:
        """Inputs that are embedded while the block runs count as outputs, and do not make way. Raises as `require`."""
        self.require(num_inputs, 1, priority)
        self.num_outputs += num_inputs
        try:
            yield
        finally:
            self.num_outputs -= num_inputs

    def require(self, num_prompts: int, num_choices: int, priority: int) -> None:
        """See that there is room for so much; what makes way for it ends with Overloaded.

        Raises Overloaded where there is none now, and nobody makes way; InvalidRequest where there never will be.
        """
        num_outputs, most = num_prompts * num_choices, self.max_outputs
        if num_outputs > most:
            field = "options.num_choices" if num_choices > 1 else "prompts"
            given = f"{num_prompts} prompts times {num_choices} choices are {num_outputs} outputs"
            description = f"{given}: at most {most} in one call (max_concurrent_requests)"
            raise InvalidRequest.of(field, description)
        num_over = self.num_outputs + num_outputs - most
        if num_over <= 0:
            return
        leaving = self._making_way(num_over, priority)
        if not leaving:
            raise Overloaded(
                f"{self.num_outputs} of at most {most} outputs (max_concurrent_requests) are being generated, "
                f"which leaves no room for {num_outputs} more",
                reason="TOO_MANY_REQUESTS",
                retry_after_s=RETRY_AFTER_S,
            )
        for submission in leaving:
            submission.fail(
                Overloaded(
                    f"it made way for a request of priority {priority}: {most} outputs (max_concurrent_requests) are "
                    "being generated",
                    reason="MADE_WAY",
                    retry_after_s=RETRY_AFTER_S,
                )
            )

    def _making_way(self, num_over: int, priority: int) -> list[Submission]:
        """What must end so that so many outputs fewer are open; nothing where that is not to be had."""
        leaving: list[Submission] = []
        if min(self._priorities, default=priority) >= priority:
            return leaving
        below = [s for s in reversed(self._open) if s.context.priority < priority and not s.started]
        for submission in sorted(below, key=lambda other: other.context.priority):
            leaving.append(submission)
            num_over -= len(submission.choices)
            if num_over <= 0:
                return leaving
        return []
