"""How much room in the queue each session is told it has: admission credits, leased by demand.

The tier above holds what it has no credit for, where it can still be re-ordered, re-routed and expired. Credits are
advice with an end: what is refused at the limit is refused whoever was promised what. Knows counts; not the wire.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

TTL_S = 2.0
"""How long a lease holds; idle sessions are sent one every second."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one session may submit until its next lease, or for TTL_S."""

    requests: int
    tokens: int


class Borrower(Protocol):
    """A session that wants room."""

    held_requests: int
    """Requests that its peer holds back, as last reported."""
    held_tokens: int


def lease(borrower: Borrower, everyone: Iterable[Borrower], free_requests: int, free_tokens: int) -> Lease:
    """The borrower's part of what is free: in proportion to one more than what each of `everyone` holds back.

    The one keeps a part for sessions that hold nothing, so that a first request need not ask before it comes.
    """
    others = list(everyone)
    requests = sum(other.held_requests + 1 for other in others)
    tokens = sum(other.held_tokens + 1 for other in others)
    return Lease(
        requests=max(0, free_requests) * (borrower.held_requests + 1) // max(1, requests),
        tokens=max(0, free_tokens) * (borrower.held_tokens + 1) // max(1, tokens),
    )
