"""Fair shares among tenants by tokens served: a virtual token counter with weights.

After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024.
Each tenant has a counter of the service it got, divided by its weight; whoever waits with the lowest counter is next. A
tenant that begins to wait is lifted to the least counter of those that wait already, so that nobody saves up service
while idle. Two tenants that both wait all the time then stay within twice the larger of PROMPT_COST times the longest
prompt and OUTPUT_COST times the most tokens a batch can hold, without preempting what runs. Does not know sequences.
"""

from collections.abc import Collection, Iterable, Mapping

PROMPT_COST = 1.0
"""Service that one computed prompt token stands for; those from the prefix cache are free."""
OUTPUT_COST = 2.0
"""Service that one output token stands for."""
MAX_TENANTS = 10_000
"""Counters remembered; beyond them those of tenants that neither wait nor run are dropped, the lowest first."""


class FairShare:
    """One counter per tenant. `weights`: above 0, 1 for tenants not named; twice the weight, twice the service."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self._counters: dict[str, float] = {}
        self._last_left: dict[int, float] = {}
        """By priority: the counter of the tenant that waited last, when nobody does."""

    def weight(self, tenant: str) -> float:
        """The tenant's weight."""
        return self.weights.get(tenant, 1.0)

    def counter(self, tenant: str) -> float:
        """Service it got, over its weight; comparable among tenants that wait."""
        return self._counters.get(tenant, 0.0)

    def begin_to_wait(self, tenant: str, priority: int, waiting: Iterable[str]) -> None:
        """A tenant that did not wait at this priority does now, besides those `waiting` there already."""
        lift = min((self.counter(other) for other in waiting), default=self._last_left.get(priority, 0.0))
        self._counters[tenant] = max(self.counter(tenant), lift)

    def stop_waiting(self, tenant: str, priority: int) -> None:
        """A tenant's last waiting sequence of this priority is gone."""
        self._last_left[priority] = self.counter(tenant)

    def charge(self, tenant: str, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """Enter service that the tenant got."""
        cost = PROMPT_COST * prompt_tokens + OUTPUT_COST * output_tokens
        self._counters[tenant] = self.counter(tenant) + cost / self.weight(tenant)

    @property
    def is_full(self) -> bool:
        """Whether more tenants are remembered than should be."""
        return len(self._counters) > MAX_TENANTS

    def forget(self, busy: Collection[str]) -> None:
        """Drop the counters of half of all tenants that are not `busy`, the lowest first: they have least to lose."""
        idle = sorted((counter, tenant) for tenant, counter in self._counters.items() if tenant not in busy)
        for _, tenant in idle[: (len(idle) + 1) // 2]:
            del self._counters[tenant]
