"""HeldQueue against a list that is sorted anew each time, over random histories."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_svc.held_queue import Held, HeldQueue
from tokenwire.errors import Overloaded


@dataclass(eq=False)
class Entry:
    tenant: str = ""
    num_tokens: int = 10
    priority: int = 0
    num_requests: int = 1
    begun: bool = False


def drained(queue: HeldQueue[Entry]) -> list[Entry]:
    """Everything, each taken as it comes first."""
    taken = []
    while queue:
        entry = next(queue.in_order())
        queue.take(entry)
        taken.append(entry)
    return taken


def test_priority_then_begun_streams_then_arrival() -> None:
    queue: HeldQueue[Entry] = HeldQueue(10)
    low, first, second = Entry(priority=-1), Entry(), Entry()
    begun, urgent = Entry(begun=True), Entry(priority=5)
    for entry in (low, first, second, begun, urgent):
        assert queue.add(entry) == []
    assert list(queue.in_order()) == [urgent, begun, first, second, low]
    assert drained(queue) == [urgent, begun, first, second, low]


def test_tenants_share_by_prompt_tokens() -> None:
    queue: HeldQueue[Entry] = HeldQueue(100)
    for _ in range(30):
        queue.add(Entry("long", 100))
    for _ in range(30):
        queue.add(Entry("short", 10))
    served = [entry.tenant for entry in drained(queue)[:22]]
    assert served.count("long") == 2 and served.count("short") == 20


def test_nobody_saves_up_a_share_while_idle() -> None:
    queue: HeldQueue[Entry] = HeldQueue(100)
    for _ in range(20):
        queue.add(Entry("busy"))
    for _ in range(10):
        queue.take(next(queue.in_order()))
    for _ in range(10):
        queue.add(Entry("late"))
    served = [entry.tenant for entry in drained(queue)]
    assert sorted(served[:4]) == ["busy", "busy", "late", "late"]


def test_what_is_passed_over_does_not_hide_what_comes_after() -> None:
    queue: HeldQueue[Entry] = HeldQueue(100)
    entries = [Entry("a"), Entry("b"), Entry("a"), Entry("b")]
    for entry in entries:
        queue.add(entry)
    order = queue.in_order()
    assert next(order) is entries[0]
    second = next(order)
    queue.take(second)
    assert second is entries[1]
    assert [*order] == [entries[2], entries[3]] and entries[0] in queue


def test_the_last_of_a_tenant_above_its_share_gives_way() -> None:
    queue: HeldQueue[Entry] = HeldQueue(4)
    greedy = [Entry("greedy") for _ in range(4)]
    for entry in greedy:
        queue.add(entry)
    with pytest.raises(Overloaded, match="max_held_requests") as caught:
        queue.add(Entry("greedy"))
    assert caught.value.reason == "HELD_QUEUE_FULL" and caught.value.retry_after_s
    assert queue.add(Entry("modest")) == [greedy[3]]
    assert queue.add(Entry("modest")) == [greedy[2]]
    with pytest.raises(Overloaded):
        queue.add(Entry("modest"))
    queue.check_integrity()


def test_a_lower_priority_displaces_nobody_and_what_has_begun_stays() -> None:
    queue: HeldQueue[Entry] = HeldQueue(2)
    for _ in range(2):
        queue.add(Entry("a", priority=1))
    with pytest.raises(Overloaded):
        queue.add(Entry("b", priority=0))
    assert len(queue.add(Entry("b", priority=1))) == 1
    begun: HeldQueue[Entry] = HeldQueue(2)
    for _ in range(5):
        begun.add(Entry("a", begun=True))
    with pytest.raises(Overloaded):
        begun.add(Entry("b"))
    assert begun.num_requests == 5


def test_the_lowest_priority_that_came_last_gives_way_first() -> None:
    queue: HeldQueue[Entry] = HeldQueue(4)
    low, lower = [Entry(priority=-1), Entry("b", priority=-1)], Entry(priority=-2)
    begun = Entry(priority=-3, begun=True)
    for entry in (low[0], lower, low[1], begun):
        queue.add(entry)
    assert queue.add(Entry()) == [lower]
    assert queue.add(Entry(num_requests=2)) == [low[1], low[0]]
    with pytest.raises(Overloaded):
        queue.add(Entry())
    assert begun in queue
    queue.check_integrity()


def test_one_alone_may_exceed_the_bound() -> None:
    queue: HeldQueue[Entry] = HeldQueue(2)
    assert queue.add(Entry(num_requests=7)) == []
    assert queue.num_requests == 7
    with pytest.raises(Overloaded):
        queue.add(Entry())


def test_what_is_held_is_told_by_priority_and_tenant() -> None:
    queue: HeldQueue[Entry] = HeldQueue(10)
    for entry in (Entry("a", 5), Entry("a", 7, begun=True), Entry("a", 1, priority=3), Entry("b", 2, num_requests=2)):
        queue.add(entry)
    assert sorted(queue.held(), key=lambda each: (each.priority, each.tenant)) == [
        Held(0, "a", 2, 12), Held(0, "b", 2, 2), Held(3, "a", 1, 1),
    ]  # fmt: skip


class Oracle:
    """The same promises, kept slowly."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests = max_requests
        self.entries: list[Entry] = []
        """By arrival."""
        self.counters: dict[str, int] = {}
        self.floor = 0

    def holding(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in self.entries:
            found[entry.tenant] = found.get(entry.tenant, 0) + entry.num_requests
        return found

    def in_order(self) -> list[Entry]:
        numbers = {entry: number for number, entry in enumerate(self.entries)}
        return sorted(
            self.entries, key=lambda e: (-e.priority, not e.begun, self.counters[e.tenant], numbers[e])
        )  # fmt: skip

    def below(self, new: Entry) -> list[Entry]:
        """What is of a lower priority and has not begun, in the order in which it leaves."""
        found = [entry for entry in reversed(self.entries) if entry.priority < new.priority and not entry.begun]
        return sorted(found, key=lambda entry: entry.priority)

    def num_that_may_leave(self, new: Entry) -> int:
        """Sequences that can give way: all of lower priorities, and a tenant's last ones until it holds its share."""
        holding, num = self.holding(), 0
        for entry in self.below(new):
            num += entry.num_requests
            holding[entry.tenant] -= entry.num_requests
        own = holding.pop(new.tenant, 0) + new.num_requests
        holding = {tenant: held for tenant, held in holding.items() if held}
        share = max(1, self.max_requests // (len(holding) + 1))
        if own > share:
            return num
        for tenant, held in holding.items():
            last_first = [e for e in reversed(self.in_order_of(tenant)) if e.priority == new.priority and not e.begun]
            for entry in last_first:
                if held <= share:
                    break
                held -= entry.num_requests
                num += entry.num_requests
        return num

    def in_order_of(self, tenant: str) -> list[Entry]:
        return [entry for entry in self.in_order() if entry.tenant == tenant]

    def add(self, entry: Entry) -> None:
        holding = self.holding()
        if entry.tenant not in holding:
            lift = min((self.counters[tenant] for tenant in holding), default=self.floor)
            self.counters[entry.tenant] = max(self.counters.get(entry.tenant, 0), lift)
        self.entries.append(entry)

    def take(self, entry: Entry) -> None:
        self.floor = self.counters[entry.tenant]
        self.counters[entry.tenant] += entry.num_tokens
        self.discard(entry)

    def discard(self, entry: Entry) -> None:
        self.entries.remove(entry)
        if not self.entries:
            self.counters.clear()
            self.floor = 0


ENTRIES = st.builds(
    Entry,
    tenant=st.sampled_from("abcd"),
    num_tokens=st.integers(1, 30),
    priority=st.integers(-1, 1),
    num_requests=st.integers(1, 3),
    begun=st.sampled_from([False, False, False, True]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), ENTRIES),
        st.tuples(st.just("add"), ENTRIES),
        st.tuples(st.just("take"), st.integers(0, 3)),
        st.tuples(st.just("discard"), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(max_requests=st.integers(1, 12), steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_random_histories_agree_with_the_oracle(max_requests: int, steps: list[tuple[str, Any]]) -> None:
    queue: HeldQueue[Entry] = HeldQueue(max_requests)
    oracle = Oracle(max_requests)
    ends: list[Entry] = []
    for what, value in steps:
        if what == "add":
            held_before = oracle.holding()
            over = queue.num_requests + value.num_requests - max_requests
            bound = over > 0 and bool(oracle.entries) and not value.begun
            enough = oracle.num_that_may_leave(value) >= over
            try:
                displaced = queue.add(value)
            except Overloaded:
                assert bound and not enough
                ends.append(value)
            else:
                assert enough if bound else not displaced
                below = oracle.below(value)
                num_below = len([entry for entry in displaced if entry.priority < value.priority])
                assert displaced[:num_below] == below[:num_below]
                assert num_below in (len(below), len(displaced)), "shares are asked when nothing lower is left"
                for entry in displaced[:num_below]:
                    held_before[entry.tenant] -= entry.num_requests
                    oracle.discard(entry)
                    ends.append(entry)
                tenants = {tenant for tenant, held in held_before.items() if held} | {value.tenant}
                share = max(1, max_requests // len(tenants))
                for entry in displaced[num_below:]:
                    assert entry.tenant != value.tenant and entry.priority <= value.priority and not entry.begun
                    assert held_before[entry.tenant] > share
                    held_before[entry.tenant] -= entry.num_requests
                    oracle.discard(entry)
                    ends.append(entry)
                oracle.add(value)
        elif oracle.entries and what == "take":
            given = list(queue.in_order())
            entry = given[min(value, len(given) - 1)]
            queue.take(entry)
            oracle.take(entry)
            ends.append(entry)
        elif oracle.entries:
            entry = oracle.entries[value % len(oracle.entries)]
            assert queue.discard(entry) and not queue.discard(entry)
            oracle.discard(entry)
            ends.append(entry)
        queue.check_integrity()
        assert list(queue.in_order()) == oracle.in_order()
        assert queue.entries() == oracle.entries
    ends += drained(queue)
    added = [value for what, value in steps if what == "add"]
    assert len(ends) == len(set(map(id, ends))) == len(added), "each ends once"
