"""What goes to one model tier in one Submit: choices of a request that are next to each other.

All of them at first; after a loss those that have nothing yet together, and each of the others with its own output so
far. Knows where it is; does not know what its choices' text is, nor when it goes.
"""

import time
from collections.abc import Callable, Sequence

from tokenizer_svc.router import Placement, Replica, RoutingQuery
from tokenwire.errors import TokenwireError
from tokenwire.requests import CancelReason, RequestContext

AVOID_S = 0.5
"""How long the replica that was lost is left out: it may be dying still, and look well."""


class Part:
    """`first` and `num_requests` say which choices. `go` and `turn_away` are the request's."""

    __slots__ = (
        "_avoid_until_s", "_go", "_turn_away", "avoided", "begun", "first", "loss", "num_generated_tokens",
        "num_requests", "num_tokens", "num_wanted_tokens", "placement", "priority", "query", "replica", "tenant",
    )  # fmt: skip

    def __init__(
        self,
        context: RequestContext,
        query: RoutingQuery,
        choices: range,
        *,
        num_generated_tokens: int,
        num_wanted_tokens: int,
        go: Callable[["Part", Replica], None],
        turn_away: Callable[["Part", TokenwireError], None],
        avoided: Replica | None = None,
        loss: TokenwireError | None = None,
    ) -> None:
        """`query`: prompt and output so far. `num_wanted_tokens`: positions that its context must have.

        `avoided`, `loss`: the replica that had it before, and why it has not any more.
        """
        self.priority = context.priority
        self.tenant = context.tenant
        self.query = query
        self.first = choices.start
        self.num_requests = len(choices)
        self.num_tokens = len(query.token_ids) * len(choices)
        self.num_generated_tokens = num_generated_tokens
        """How many of the query's tokens are output."""
        self.num_wanted_tokens = num_wanted_tokens
        self.begun = loss is not None
        self.loss = loss
        self.avoided = avoided
        self.placement: Placement | None = None
        """None until it is sent down."""
        self.replica: Replica | None = None
        self._avoid_until_s = time.monotonic() + AVOID_S
        self._go = go
        self._turn_away = turn_away

    def suits(self, replica: Replica) -> bool:
        """Whether the replica has its adapter and a context that it fits, and it was not lost there just now."""
        if self.query.adapter and self.query.adapter not in replica.adapters:
            return False
        if replica is self.avoided and time.monotonic() < self._avoid_until_s:
            return False
        return not replica.max_context_tokens or self.num_wanted_tokens <= replica.max_context_tokens

    def go(self, replica: Replica) -> None:
        """Submit it to this replica."""
        self._go(self, replica)

    def turn_away(self, error: TokenwireError) -> None:
        """No model tier takes it."""
        self._turn_away(self, error)

    def cancel(self, choice: int, reason: CancelReason) -> None:
        """Ask the model tier for the end of a choice, by its number in the request; its terminal event still comes."""
        if self.placement is not None:
            self.placement.cancel(choice - self.first, reason)

    def drop(self, choice: int, reason: CancelReason) -> None:
        """Ask for the end of a choice and hear no more of it."""
        if self.placement is not None:
            self.placement.drop(choice - self.first, reason)


def runs_of(indices: Sequence[int]) -> list[range]:
    """Ascending numbers as runs without a gap."""
    found: list[range] = []
    for index in indices:
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
