"""How much room in the queue each session is told it has: admission credits, leased by demand.

The tier above holds what it has no credit for, where it can still be re-ordered, re-routed and expired. Credits are
advice with an end: what is refused at the limit is refused whoever was promised what. Knows counts; not the wire.
"""

from dataclasses import dataclass

BASE_REQUESTS, BASE_TOKENS = 1, 1024
"""Every session's claim besides what it holds back."""
MAX_HELD_REQUESTS, MAX_HELD_TOKENS = 10_000, 10_000_000
"""What one session can claim to hold back."""
TTL_S = 2.0
"""How long a lease holds; idle sessions are sent one every second."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one session may submit until its next lease, or for TTL_S."""

    requests: int
    tokens: int


NOTHING = Lease(0, 0)


@dataclass(slots=True, eq=False)
class Claim:
    """What one session wants: a part for itself, and what its peer holds back.

    The part of its own lets a first request come without asking before.
    """

    requests: int
    tokens: int
    leased: Lease = NOTHING
    """What it was given last."""


class Lessor:
    """All sessions of a tier. `open` and `close` a claim; work per call does not depend on how many there are."""

    def __init__(self) -> None:
        self.leased = NOTHING
        """What all sessions were given last, together."""
        self._requests = 0
        self._tokens = 0
        self._claims: set[Claim] = set()

    def open(self) -> Claim:
        """A session begins."""
        claim = Claim(0, 0)
        self._claims.add(claim)
        self.report(claim, 0, 0)
        return claim

    def report(self, claim: Claim, held_requests: int, held_tokens: int) -> None:
        """A session's peer holds back so much now."""
        requests = BASE_REQUESTS + min(held_requests, MAX_HELD_REQUESTS)
        tokens = BASE_TOKENS + min(held_tokens, MAX_HELD_TOKENS)
        self._requests += requests - claim.requests
        self._tokens += tokens - claim.tokens
        claim.requests, claim.tokens = requests, tokens

    def close(self, claim: Claim) -> None:
        """A session ends; its claim counts no more."""
        self._requests -= claim.requests
        self._tokens -= claim.tokens
        self._note(claim, NOTHING)
        self._claims.discard(claim)

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is claimed and leased is what the open claims claim and were leased."""
        claimed = (sum(each.requests for each in self._claims), sum(each.tokens for each in self._claims))
        leased = Lease(sum(e.leased.requests for e in self._claims), sum(e.leased.tokens for e in self._claims))
        if claimed != (self._requests, self._tokens) or leased != self.leased:
            raise AssertionError(f"{leased} is leased to sessions that claim {claimed}; counted are {self.leased}")

    def lease(self, claim: Claim, free_requests: int, free_tokens: int) -> Lease:
        """The claim's part of what is free, in proportion to all open claims; never nothing of what there is."""
        leased = NOTHING
        if free_requests > 0 and free_tokens > 0:
            leased = Lease(
                requests=max(1, free_requests * claim.requests // self._requests),
                tokens=max(1, free_tokens * claim.tokens // self._tokens),
            )
        self._note(claim, leased)
        return leased

    def _note(self, claim: Claim, leased: Lease) -> None:
        if leased != claim.leased:
            self.leased = Lease(
                self.leased.requests + leased.requests - claim.leased.requests,
                self.leased.tokens + leased.tokens - claim.leased.tokens,
            )
            claim.leased = leased
