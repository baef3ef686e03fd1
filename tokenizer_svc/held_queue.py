"""Requests that no model tier has room for yet, in the order in which they should go: what is held, and who is next.

Order: priority, then streams that have begun, then fair shares among tenants by prompt tokens, then arrival. Bounded;
when it is full, what is of a lower priority gives way, the lowest and last come first; then a tenant that holds less
than its share takes the place of what came last from one that holds more.
Plain values: does not know model tiers, time, or why something is held.

Shares follow a virtual counter, as in Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: whoever
waits with the least counter is next and is charged its tokens; a tenant that begins to wait is lifted to the least
counter of those that wait, so that nobody saves up a share while idle. An empty queue forgets all counters.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tokenwire.errors import Overloaded

MAX_COUNTERS = 4096
"""Tenants remembered that hold nothing any more."""
RETRY_AFTER_S = 1.0


class Holdable(Protocol):
    """What can be held. Compared by identity; its values do not change while it is held."""

    @property
    def priority(self) -> int:
        """Higher goes first."""

    @property
    def tenant(self) -> str:
        """Whose."""

    @property
    def num_requests(self) -> int:
        """Sequences it will be, 1 or more."""

    @property
    def num_tokens(self) -> int:
        """Their prompt tokens, all of them together."""

    @property
    def begun(self) -> bool:
        """Whether it was with a model tier before: never refused, and not displaced."""


E = TypeVar("E", bound=Holdable)


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of one priority and tenant."""

    priority: int
    tenant: str
    num_requests: int
    num_tokens: int


@dataclass(slots=True)
class _Line(Generic[E]):
    """One tenant's entries of one level, by arrival."""

    entries: list[E] = field(default_factory=list)
    num_requests: int = 0
    num_tokens: int = 0


class HeldQueue(Generic[E]):
    """Every entry leaves once: by `take`, `discard`, or displaced by an `add`."""

    def __init__(self, max_requests: int) -> None:
        """`max_requests`: sequences that may be held, those of streams that have begun not limited."""
        self.num_requests = 0
        """Sequences held."""
        self._max_requests = max_requests
        self._lines: dict[tuple[int, bool], dict[str, _Line[E]]] = {}
        """By level, the first to go sorting first, then tenant; without empty ones."""
        self._numbers: dict[E, int] = {}
        """All entries, with their place in the order of arrival."""
        self._num_arrived = 0
        self._by_tenant: dict[str, int] = {}
        """Sequences held, of tenants that hold any."""
        self._counters: dict[str, int] = {}
        self._floor = 0
        """Counter of the tenant that was served last, when it was."""

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, entry: E) -> bool:
        return entry in self._numbers

    def add(self, entry: E) -> list[E]:
        """Hold an entry. Returns what had to leave for it.

        Raises Overloaded when the queue is full, of entries of no lower priority, and nobody holds more than their
        share. An entry that finds nothing held may exceed the bound by itself.
        """
        displaced = [] if entry.begun or not self._numbers else self._displaced_by(entry)
        for other in displaced:
            self.discard(other)
        tenant = entry.tenant
        if tenant not in self._by_tenant:
            lift = min((self._counters[other] for other in self._by_tenant), default=self._floor)
            self._counters[tenant] = max(self._counters.get(tenant, 0), lift)
            self._by_tenant[tenant] = 0
        line = self._lines.setdefault(_level(entry), {}).setdefault(tenant, _Line())
        line.entries.append(entry)
        line.num_requests += entry.num_requests
        line.num_tokens += entry.num_tokens
        self._by_tenant[tenant] += entry.num_requests
        self.num_requests += entry.num_requests
        self._num_arrived += 1
        self._numbers[entry] = self._num_arrived
        return displaced

    def take(self, entry: E) -> None:
        """A held entry goes down; its tenant is charged its tokens."""
        self._floor = self._counters[entry.tenant]
        self._counters[entry.tenant] += entry.num_tokens
        self._remove(entry)
        self._forget()

    def discard(self, entry: E) -> bool:
        """An entry is wanted no more. Returns whether it was held."""
        if entry not in self._numbers:
            return False
        self._remove(entry)
        self._forget()
        return True

    def entries(self) -> list[E]:
        """All that is held, by arrival."""
        return list(self._numbers)

    def in_order(self) -> Iterator[E]:
        """The entries in order, as shares stand when each is asked for. The one given last may be taken."""
        for level in sorted(self._lines):
            lines = {tenant: _still_there(line.entries) for tenant, line in self._lines.get(level, {}).items()}
            heads: list[tuple[int, int, str, E]] = []
            for tenant, line in lines.items():
                self._push_next(heads, tenant, line)
            while heads:
                _, _, tenant, entry = heapq.heappop(heads)
                yield entry
                self._push_next(heads, tenant, lines[tenant])

    def held(self) -> list[Held]:
        """What is held by priority and tenant, in no order that matters."""
        found: dict[tuple[int, str], Held] = {}
        for (minus_priority, _), lines in self._lines.items():
            for tenant, line in lines.items():
                before = found.get((minus_priority, tenant), Held(-minus_priority, tenant, 0, 0))
                found[minus_priority, tenant] = Held(
                    -minus_priority,
                    tenant,
                    before.num_requests + line.num_requests,
                    before.num_tokens + line.num_tokens,
                )
        return list(found.values())

    def check_integrity(self) -> None:
        """Raise AssertionError unless lines and counts agree."""
        listed: list[E] = []
        for level, lines in self._lines.items():
            for tenant, line in lines.items():
                if not line.entries or any((_level(e), e.tenant) != (level, tenant) for e in line.entries):
                    raise AssertionError("a line is empty, or holds what belongs into another")
                if line.num_requests != sum(e.num_requests for e in line.entries):
                    raise AssertionError("the sequences of a line are miscounted")
                if line.num_tokens != sum(e.num_tokens for e in line.entries):
                    raise AssertionError("the tokens of a line are miscounted")
                listed += line.entries
        if len(listed) != len(self._numbers) or set(listed) != set(self._numbers):
            raise AssertionError("an entry is in no line, or in two")
        by_tenant: dict[str, int] = {}
        for entry in listed:
            by_tenant[entry.tenant] = by_tenant.get(entry.tenant, 0) + entry.num_requests
        if by_tenant != self._by_tenant or sum(by_tenant.values()) != self.num_requests:
            raise AssertionError("held sequences are miscounted")

    def _displaced_by(self, entry: E) -> list[E]:
        """What leaves for a new entry; nothing where there is room. Raises Overloaded where nothing may."""
        num_over = self.num_requests + entry.num_requests - self._max_requests
        if num_over <= 0:
            return []
        leaving: list[E] = []
        holding = dict(self._by_tenant)
        for lower in self._below(entry.priority):
            if num_over <= 0:
                return leaving
            leaving.append(lower)
            num_over -= lower.num_requests
            holding[lower.tenant] -= lower.num_requests
        own = holding.pop(entry.tenant, 0) + entry.num_requests
        holding = {tenant: held for tenant, held in holding.items() if held}
        share = max(1, self._max_requests // (len(holding) + 1))
        if own <= share:
            candidates = {
                tenant: self._last_first(tenant, entry.priority) for tenant, held in holding.items() if held > share
            }
            while num_over > 0 and candidates:
                tenant = max(candidates, key=lambda name: holding[name])
                other = next(candidates[tenant], None)
                if other is None or holding[tenant] <= share:
                    del candidates[tenant]
                    continue
                leaving.append(other)
                holding[tenant] -= other.num_requests
                num_over -= other.num_requests
        if num_over > 0:
            message = f"{self.num_requests} requests are held here until a model tier has room, and "
            message += f"{self._max_requests} may (max_held_requests): {entry.num_requests} more are refused"
            raise Overloaded(message, reason="HELD_QUEUE_FULL", retry_after_s=RETRY_AFTER_S)
        return leaving

    def _below(self, priority: int) -> Iterator[E]:
        """What of lower priorities has not begun: the lowest first, then the last to arrive."""
        for level in sorted(self._lines, reverse=True):
            if -level[0] < priority and level[1]:
                entries = (entry for line in self._lines[level].values() for entry in line.entries)
                yield from sorted(entries, key=self._numbers.__getitem__, reverse=True)

    def _last_first(self, tenant: str, priority: int) -> Iterator[E]:
        """What of a tenant and this priority has not begun, the last to go first."""
        line = self._lines.get((-priority, True), {}).get(tenant)
        if line is not None:
            yield from reversed(line.entries)

    def _push_next(self, heads: list[tuple[int, int, str, E]], tenant: str, line: Iterator[E]) -> None:
        entry = next(line, None)
        if entry is not None:
            heapq.heappush(heads, (self._counters[tenant], self._numbers[entry], tenant, entry))

    def _remove(self, entry: E) -> None:
        level, tenant = _level(entry), entry.tenant
        lines = self._lines[level]
        line = lines[tenant]
        line.entries.remove(entry)
        line.num_requests -= entry.num_requests
        line.num_tokens -= entry.num_tokens
        if not line.entries:
            del lines[tenant]
        if not lines:
            del self._lines[level]
        self.num_requests -= entry.num_requests
        self._by_tenant[tenant] -= entry.num_requests
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
        del self._numbers[entry]

    def _forget(self) -> None:
        """Drop counters that say nothing any more, and more when there are too many."""
        if not self._numbers:
            self._counters.clear()
            self._floor = 0
        elif len(self._counters) > MAX_COUNTERS + len(self._by_tenant):
            self._counters = {tenant: self._counters[tenant] for tenant in self._by_tenant}


def _level(entry: Holdable) -> tuple[int, bool]:
    """Sorts what goes first to the front."""
    return (-entry.priority, not entry.begun)


def _still_there(entries: list[E]) -> Iterator[E]:
    """Each of a list of which the one last given may be removed."""
    index = 0
    while index < len(entries):
        given = entries[index]
        yield given
        if index < len(entries) and entries[index] is given:
            index += 1
