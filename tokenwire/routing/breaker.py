"""When a replica to which requests fail is to be passed over, and when it is tried again: a circuit breaker.

A state machine over outcomes and a clock: closed, open after so many failures in a row, half open once a pause is over
and a request tries it. Each opening without a request that ended well in between doubles the pause. Does not know
replicas, the wire, or what others do: how many may be passed over at once is `ejection`'s business.
"""

import time
from collections.abc import Callable
from enum import Enum

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
PROBE_TIMEOUT_S = 10.0
"""A trial that has said nothing for so long does not keep others from trying."""


class BreakerState(Enum):
    """Closed is the good one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Breaker:
    """One replica's. It is told of submissions and outcomes, but not of outcomes from before it opened."""

    def __init__(
        self,
        max_failures: int = 5,
        *,
        on_open: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens after `max_failures` in a row; 0: never. `on_open` is called each time; `clock` gives seconds."""
        self.state = BreakerState.CLOSED
        self.last_failure = ""
        """What the last failure was, for people."""
        self._max_failures = max_failures
        self._on_open = on_open
        self._clock = clock
        self._num_failures = 0
        """In a row, while closed."""
        self._pause_s = FIRST_PAUSE_S
        """Of the next opening."""
        self._next_trial_s = 0.0

    @property
    def admits(self) -> bool:
        """Whether a request may go there: closed, or it is time for a trial and none is under way."""
        return self.state is BreakerState.CLOSED or self._clock() >= self._next_trial_s

    @property
    def is_on_trial(self) -> bool:
        """Whether a request that tries it has not said yet how it went."""
        return self.state is BreakerState.HALF_OPEN and not self.admits

    @property
    def wait_s(self) -> float:
        """Seconds until it admits a request, as far as is known now."""
        return 0.0 if self.admits else self._next_trial_s - self._clock()

    def on_submit(self) -> None:
        """A request goes there. When it is the trial, no other follows until its outcome or PROBE_TIMEOUT_S."""
        if self.state is not BreakerState.CLOSED and self.admits:
            self.state = BreakerState.HALF_OPEN
            self._next_trial_s = self._clock() + PROBE_TIMEOUT_S

    def on_progress(self) -> None:
        """First tokens of what was submitted since it opened: it works, though nothing has ended well yet."""
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.CLOSED
            self._num_failures = 0

    def on_success(self) -> None:
        """A request ended well."""
        self.on_progress()
        self._num_failures = 0
        self._pause_s = FIRST_PAUSE_S

    def on_failure(self, why: str) -> None:
        """A request ended badly, or the connection did. While open it changes nothing: that was known."""
        self.last_failure = why
        if self.state is BreakerState.CLOSED:
            self._num_failures += 1
            if not self._max_failures or self._num_failures < self._max_failures:
                return
        elif self.state is BreakerState.OPEN:
            return
        self.state = BreakerState.OPEN
        self._next_trial_s = self._clock() + self._pause_s
        self._pause_s = min(MAX_PAUSE_S, self._pause_s * 2)
        self._on_open()

    def problem(self) -> str:
        """Why requests are kept away; empty when they are not."""
        if self.state is BreakerState.CLOSED:
            return ""
        if self.state is BreakerState.HALF_OPEN:
            return f"tried again after failures, the last one: {self.last_failure}"
        return f"passed over for {self.wait_s:.1f} s more after failures, the last one: {self.last_failure}"
