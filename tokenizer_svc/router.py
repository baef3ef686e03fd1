"""Chooses the model replica for a request: the least loaded of those that can take it.

Plain values and protocols alone; the wire is `tokenizer_svc.backends`' business.
"""

import random
from collections.abc import Sequence
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

    def problem(self) -> str:
        """Why it is not ready."""

    def submit(self, submission: TokenSubmission, receivers: Sequence[TokenReceiver]) -> Placement:
        """Send a request down, one receiver per choice. Only while ready."""


class Router:
    """All replicas of the model."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas

    @property
    def num_ready(self) -> int:
        """Replicas that take new requests."""
        return sum(replica.ready for replica in self.replicas)

    def pick(self, exclude: Replica | None = None) -> Replica:
        """The least loaded ready replica, one of them at random when several are; raises Unavailable when none is."""
        ready = [replica for replica in self.replicas if replica.ready and replica is not exclude]
        if not ready:
            problems = "; ".join(f"{r.target}: {r.problem()}" for r in self.replicas if r is not exclude)
            raise Unavailable(
                f"no {'other ' if exclude else ''}model tier can take the request ({problems or 'there is one alone'})",
                reason="MODEL_TIER_DOWN",
            )
        least = min(replica.load for replica in ready)
        return random.choice([replica for replica in ready if replica.load == least])
