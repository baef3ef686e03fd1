"""What one model tier allows one session to submit: its admission credits, as they are leased, used and lapse.

Plain values; knows neither the wire nor what is submitted. The other side is `model_svc/credits.py`.
"""

import time
from collections.abc import Callable


class Allowance:
    """The latest lease, less what was submitted since.

    A lease can have been written before the last submits arrived there. So what was submitted between two leases counts
    against the second as well: once too often where they had arrived, which the next lease puts right.
    """

    def __init__(
        self, on_lapse: Callable[[int], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`on_lapse` is told how many requests a lease still allowed when it lapsed."""
        self.leases = False
        """Whether the peer leases room at all. One that never did is not waited for."""
        self._on_lapse = on_lapse
        self._clock = clock
        self._requests = 0
        self._tokens = 0
        self._expires_s = 0.0
        self._idle = False
        self._recent = (0, 0)
        """Requests and tokens submitted since the last lease."""

    def lease(self, requests: int, tokens: int, ttl_s: float, *, idle: bool) -> None:
        """A new lease replaces the last. `idle`: nothing waits at the peer, which then takes a request of any size."""
        self._check_lapsed()
        recent_requests, recent_tokens = self._recent
        self.leases = True
        self._requests, self._tokens = requests - recent_requests, tokens - recent_tokens
        self._expires_s = self._clock() + ttl_s
        self._idle = idle and not recent_requests
        self._recent = (0, 0)

    @property
    def requests(self) -> int:
        """How many requests may be submitted now; 0 where the peer leases no room."""
        return max(0, self._requests) if self._clock() < self._expires_s else 0

    def has_room(self, requests: int, tokens: int) -> bool:
        """Whether so much may be submitted now."""
        if not self.leases:
            return True
        self._check_lapsed()
        if self._requests <= 0 or self._tokens <= 0:
            return False
        return (requests <= self._requests and tokens <= self._tokens) or (self._idle and self._recent == (0, 0))

    def charge(self, requests: int, tokens: int) -> None:
        """So much was submitted."""
        self._requests -= requests
        self._tokens -= tokens
        self._recent = (self._recent[0] + requests, self._recent[1] + tokens)

    def _check_lapsed(self) -> None:
        if self._requests > 0 and self._clock() >= self._expires_s:
            if self._on_lapse is not None:
                self._on_lapse(self._requests)
            self._requests = self._tokens = 0
