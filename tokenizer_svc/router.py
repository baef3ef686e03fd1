"""The model replicas: which of them take requests, and the one for a request, as a policy chooses.

Plain values and protocols alone; the wire is `tokenizer_svc.backends`' business, all policies but the simplest
`tokenizer_svc.policies`', and which replicas there are `tokenwire.routing`'s.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tokenizer_svc.cache_view import CacheView
from tokenwire.embeddings import EmbeddingOptions, Vector
from tokenwire.errors import TokenwireError, Unavailable
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.requests import CancelReason, GenerationOptions, RequestContext, Terminal, Usage
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.ejection import not_on_trial, without_failing


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


@dataclass(frozen=True, slots=True)
class EmbeddingSubmission:
    """Inputs that a model tier embeds in one call."""

    context: RequestContext
    inputs: Sequence[Sequence[int]]
    options: EmbeddingOptions
    vocabulary: str
    """Fingerprint under which the ids were made."""


@dataclass(frozen=True, slots=True)
class EmbeddingAnswer:
    """One vector per input, in order, and the tokens read."""

    vectors: list[Vector]
    usage: Usage


class TokenReceiver(Protocol):
    """Who takes what a model tier says of one choice. Called on the event loop."""

    def on_token(self, token_id: int) -> None:
        """One new token, and nothing besides."""

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
    generates: bool
    """Whether its model gives text."""
    embedding_size: int
    """Values of an embedding; 0: it gives none, or that is not known."""
    breaker: Breaker
    """Whether requests to it fail."""
    adapters: frozenset[str]
    """Adapters that it has, or had when it was last heard of."""
    cache: CacheView
    """What its prefix cache holds."""

    @property
    def ready(self) -> bool:
        """Whether it is connected and takes new requests."""

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
        """Why it is not ready, or is passed over."""

    def submit(self, submission: TokenSubmission, receivers: Sequence[TokenReceiver]) -> Placement:
        """Send a request down, one receiver per choice. Only while ready."""

    def embed(self, submission: EmbeddingSubmission) -> asyncio.Task[EmbeddingAnswer]:
        """Embed inputs, which count from now until the task is done. Only while ready. It raises the tier's error."""


@dataclass(frozen=True, slots=True)
class RoutingQuery:
    """What of a request may decide where it goes."""

    token_ids: Sequence[int] = ()
    cache_salt: str = ""
    tenant: str = ""
    adapter: str = ""
    """Only replicas that have it can take the request; empty: all can."""


class PickReason(Enum):
    """Why a replica was taken; the labels of a metric."""

    ONLY_ONE = "only_one"
    LEAST_LOAD = "least_load"
    POWER_OF_TWO = "power_of_two"
    PREFIX = "prefix"
    """It has the longest part of the prompt cached."""
    PREFIX_BUSY = "prefix_busy"
    """Another has a longer part, and too much to do."""
    AFFINITY = "affinity"
    AFFINITY_BUSY = "affinity_busy"
    """The key's own replica has too much to do."""


@dataclass(frozen=True, slots=True)
class Pick:
    """What a policy says."""

    replica: Replica
    reason: PickReason
    num_cached_tokens: int = 0
    """Of the prompt, as far as known; 0 where the policy does not look."""


class Policy(Protocol):
    """Chooses among replicas that can all take the request."""

    def choose(self, query: RoutingQuery, among: Sequence[Replica]) -> Pick:
        """One of several ready replicas, which the caller then submits to."""


class LeastLoad:
    """The replica with the least to do; one of them at random when several have."""

    def choose(self, query: RoutingQuery, among: Sequence[Replica]) -> Pick:
        """As Policy says. Linear in the replicas."""
        least = min(replica.load for replica in among)
        return Pick(random.choice([each for each in among if each.load == least]), PickReason.LEAST_LOAD)


class NoneAllowed(Unavailable):
    """Model tiers are ready, and the caller's own condition lets it use none of them now."""

    default_reason = "NO_MODEL_TIER_ALLOWED"


class Router:
    """All replicas of the model, and the policy that chooses among them."""

    def __init__(
        self,
        replicas: Sequence[Replica] = (),
        policy: Policy | None = None,
        *,
        max_ejected_share: float = 0.5,
        on_pick: Callable[[Pick], None] = lambda pick: None,
        discovery_problem: Callable[[], str] = lambda: "",
    ) -> None:
        """`policy`: LeastLoad where none is given. `on_pick` is told of every choice that a policy made.

        `discovery_problem`: why the list of replicas may be wrong, for the error when none is ready.
        """
        self.replicas = replicas
        """Replaced as a whole when replicas come and go."""
        self._policy = policy or LeastLoad()
        self._max_ejected_share = max_ejected_share
        self._on_pick = on_pick
        self._discovery_problem = discovery_problem

    @property
    def num_ready(self) -> int:
        """Replicas that take new requests."""
        return len(self.ready_replicas())

    def ready_replicas(self, exclude: Collection[Replica] = ()) -> list[Replica]:
        """Those that take new requests. Replicas to which requests fail are left out, within a limit."""
        connected = [replica for replica in self.replicas if replica.ready and replica not in exclude]
        return without_failing(connected, self._max_ejected_share)

    def any_ready(self) -> Replica:
        """A replica to ask what all have in common. Raises Unavailable when none is ready."""
        ready = self.ready_replicas()
        if not ready:
            raise self._none_ready(())
        return ready[0]

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
        """What the policy says of some ready replicas, at least one; the caller then submits to it.

        One that another request is just trying out is left alone where there are others.
        """
        among = not_on_trial(among)
        if len(among) == 1:
            pick = Pick(among[0], PickReason.ONLY_ONE)
        else:
            pick = self._policy.choose(query or RoutingQuery(), among)
        self._on_pick(pick)
        return pick.replica

    def _none_ready(self, exclude: Collection[Replica]) -> Unavailable:
        problems = [f"{r.target}: {r.problem()}" for r in self.replicas if r not in exclude]
        found = "; ".join(filter(None, [*problems, self._discovery_problem()]))
        otherwise = "there is one alone" if exclude else "none is known"
        return Unavailable(
            f"no {'other ' if exclude else ''}model tier can take the request ({found or otherwise})",
            reason="MODEL_TIER_DOWN",
        )
