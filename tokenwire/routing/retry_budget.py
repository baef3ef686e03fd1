"""How many requests may be tried again: a token bucket, so that tiers which fail are not asked twice as much.

As gRPC's retry throttling (gRFC A6): every retry takes a token, every request that ends well puts a part of one back.
While most requests end well there is enough for those that do not; when all fail, the bucket runs empty, and the tiers
below get each request once. Does not know when a request can be tried again, nor where.
"""

from tokenwire.errors import TokenwireError
from tokenwire.routing.outcomes import GOODBYES

SHARE = 0.2
"""What a good end puts back: in the long run one request in five may be tried again."""


class RetryBudget:
    """One for all tiers below. Lives on the event loop."""

    def __init__(self, most: int) -> None:
        """Begins full, with `most` tokens; 0: nothing that failed is ever tried again."""
        self._most = float(most)
        self._left = float(most)

    @property
    def left(self) -> float:
        """Tokens; a retry needs one."""
        return self._left

    def take(self, error: TokenwireError) -> bool:
        """Whether a request that got this error may be tried again, which is then counted."""
        if error.reason in GOODBYES:
            return True
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def on_success(self) -> None:
        """A request ended well."""
        self._left = min(self._most, self._left + SHARE)
