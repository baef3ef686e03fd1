"""Chooses the model replica for a request: the least loaded of those that can take it.

Plain values and protocols alone; the wire is `tokenizer_svc.backends`' business.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenwire.errors import TokenwireError, Unavailable
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.requests import CancelReason, GenerationOptions, RequestContext, Terminal


@dataclass(frozen=True, slots=True)
class TokenSubmission:
    """What goes to a model tier."""

    context: RequestContext
    token_ids: Sequence[int]
    options: GenerationOptions
    """Without stop strings, with a seed."""
    cache_salt: str
    vocabulary: str
    """Fingerprint under which token_ids were made."""
    num_generated_tokens: int = 0
    """How many of token_ids are earlier output."""
    first_choice: int = 0
    """Which of its request's choices is the first of these."""


class TokenReceiver(Protocol):
    """Who takes what a model tier says of one choice. Called on the event loop."""

    def on_tokens(self, token_ids: Sequence[int], logprobs: SequenceLogprobs | None = None) -> None:
        """New tokens, and the log-probabilities that came with them; the prompt's can come before any token."""

    def on_finish(self, terminal: Terminal) -> None:
        """The model tier's terminal event; nothing follows."""

    def on_lost(self, error: TokenwireError) -> None:
        """The model tier was lost before its terminal event; nothing follows."""

    def on_failed(self, error: TokenwireError) -> None:
        """One of the calls above raised: end the choice without touching what failed. Must not raise."""


class Placement(Protocol):
    """A request's place on a replica."""

    def cancel(self, choice: int, reason: CancelReason) -> None:
        """Ask for the end of a choice; its terminal event still comes."""

    def drop(self, choice: int, reason: CancelReason) -> None:
        """Ask for the end of a choice and hear no more of it."""


class Replica(Protocol):
    """One model tier as the router sees it."""

    target: str
    max_context_tokens: int
    """0: not known."""
    vocab_size: int
    """0: not known."""

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""

    @property
    def load(self) -> float:
        """Sequences it has to do with, as a multiple of what it computes in one step."""

    @property
    def leases_room(self) -> bool:
        """Whether it says how much may be submitted, so that it is worth waiting for room."""

    def has_room(self, num_requests: int, num_tokens: int) -> bool:
        """Whether so many sequences with so many prompt tokens may be submitted now."""

    def report_demand(self) -> None:
        """What is held back has changed: say so."""

    def problem(self) -> str:
        """Why it is not ready."""

    def submit(self, submission: TokenSubmission, receivers: Sequence[TokenReceiver]) -> Placement:
        """Send a request down, one receiver per choice. Only while ready."""


@dataclass(frozen=True, slots=True)
class RoutingQuery:
    """What of a request may decide where it goes."""

    token_ids: Sequence[int] = ()
    cache_salt: str = ""
    tenant: str = ""


class NoneAllowed(Unavailable):
    """Model tiers are ready, and the caller's own condition lets it use none of them now."""

    default_reason = "NO_MODEL_TIER_ALLOWED"


class Router:
    """All replicas of the model."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas

    @property
    def num_ready(self) -> int:
        """Replicas that take new requests."""
        return len(self.ready_replicas())

    def ready_replicas(self, exclude: Collection[Replica] = ()) -> list[Replica]:
        """Those that take new requests, in no order that means anything."""
        return [replica for replica in self.replicas if replica.ready and replica not in exclude]

    def pick(
        self,
        query: RoutingQuery | None = None,
        exclude: Collection[Replica] = (),
        allowed: Callable[[Replica], bool] | None = None,
    ) -> Replica:
        """The replica for a request, which the caller then submits to; replicas that are not `allowed` are passed over.

        Raises Unavailable when no replica is ready, and NoneAllowed when some are and none is allowed.
        """
        ready = self.ready_replicas(exclude)
        if not ready:
            raise self._none_ready(exclude)
        among = ready if allowed is None else [replica for replica in ready if allowed(replica)]
        if not among:
            raise NoneAllowed(f"none of the {len(ready)} model tiers that are ready takes more now")
        return self.choose(query, among)

    def choose(self, query: RoutingQuery | None, among: Sequence[Replica]) -> Replica:
        """The least loaded of some ready replicas, at least one; one of them at random when several are."""
        least = min(replica.load for replica in among)
        return random.choice([replica for replica in among if replica.load == least])

    def _none_ready(self, exclude: Collection[Replica]) -> Unavailable:
        problems = "; ".join(f"{r.target}: {r.problem()}" for r in self.replicas if r not in exclude)
        return Unavailable(
            f"no {'other ' if exclude else ''}model tier can take the request ({problems or 'there is one alone'})",
            reason="MODEL_TIER_DOWN",
        )
