"""How long a sequence is likely to wait before it starts, from how fast waiting tokens were taken lately.

Knows tokens and seconds. Says nothing (None) until it has seen the queue move for a while; an idle engine is no
evidence of anything.
"""

MEMORY_S = 10.0
"""What was seen this long ago counts 1/e."""
LEAST_EVIDENCE_S = 1.0
"""Seconds of waiting that must have been seen before anyone is refused on this ground."""


class StartEstimate:
    """Tokens taken from the queue per second, over the time in which something waited."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._since_s: float | None = None
        """Since when something has been waiting; None: nothing is."""

    def observe(self, now_s: float, taken_tokens: int, *, waiting: bool) -> None:
        """A step took so many tokens from the queue; `waiting`: some still wait after it."""
        if self._since_s is not None:
            elapsed_s = max(0.0, now_s - self._since_s)
            keep = max(0.0, 1.0 - elapsed_s / MEMORY_S)
            self._tokens = self._tokens * keep + taken_tokens
            self._seconds = self._seconds * keep + elapsed_s
        self._since_s = now_s if waiting else None

    def wait_s(self, now_s: float, tokens_ahead: float) -> float | None:
        """Seconds until a sequence behind so many tokens starts; None: not known.

        0 where nothing was left waiting by the last step: what has come since may all start with the next.
        """
        if not tokens_ahead or self._since_s is None:
            return 0.0
        if now_s - self._since_s > MEMORY_S or self._seconds < LEAST_EVIDENCE_S or not self._tokens:
            return None
        return tokens_ahead * self._seconds / self._tokens
