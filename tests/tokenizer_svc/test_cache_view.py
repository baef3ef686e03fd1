"""What is known of a replica's cache, against the cache itself under random histories with losses and restarts."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.replica import FakeClock
from tokenizer_svc import cache_view
from tokenizer_svc.cache_view import EXPECTED_FOR_S, CacheView
from tokenwire.cache_events import CacheChange, CacheEvent

SNAPSHOT, STORED, REMOVED = CacheChange.SNAPSHOT, CacheChange.STORED, CacheChange.REMOVED
ALL = range(12)


def known(view: CacheView) -> set[int]:
    return {hashed for hashed in ALL if view.holds(hashed)}


def connected(**options: Any) -> CacheView:
    view = CacheView(**options)
    view.connect(1, "scheme", 16)
    return view


class Cache:
    """A model tier's cache and its events, of which it keeps the last four; snapshots go in pieces of three."""

    def __init__(self) -> None:
        self.epoch = 1
        self.held: set[int] = set()
        self.number = 0
        self.events: deque[CacheEvent] = deque(maxlen=4)

    def restart(self) -> None:
        self.epoch += 1
        self.held, self.number = set(), 0
        self.events.clear()

    def change(self, hashes: set[int]) -> list[CacheEvent]:
        """Each of these comes where it was not and goes where it was."""
        made = []
        for change, some in ((REMOVED, hashes & self.held), (STORED, hashes - self.held)):
            if some:
                self.number += 1
                made.append(CacheEvent(self.epoch, self.number, change, tuple(some)))
        self.held ^= hashes
        self.events += made
        return made

    def after(self, epoch: int, number: int) -> list[CacheEvent]:
        if epoch == self.epoch and self.number - len(self.events) <= number <= self.number:
            return [event for event in self.events if event.number > number]
        held = sorted(self.held)
        pieces = [tuple(held[start : start + 3]) for start in range(0, max(1, len(held)), 3)]
        return [
            CacheEvent(self.epoch, self.number, SNAPSHOT, piece, index < len(pieces) - 1)
            for index, piece in enumerate(pieces)
        ]


class Link:
    """Brings a cache's events to a view, or does not."""

    def __init__(self) -> None:
        self.cache, self.view = Cache(), connected()
        self.on_the_way: deque[CacheEvent] = deque()
        self.last: CacheEvent | None = None
        self.ask_again()

    def ask_again(self) -> None:
        self.on_the_way = deque(self.cache.after(*self.view.position))

    def deliver(self) -> None:
        if self.on_the_way:
            self.last = self.on_the_way.popleft()
            self._apply(self.last)

    def deliver_all(self) -> None:
        while self.on_the_way:
            self.deliver()

    def lose(self) -> None:
        """Pieces of one snapshot come together: they share a number, so none can be missed."""
        if self.on_the_way and self.on_the_way[0].change is not SNAPSHOT:
            self.on_the_way.popleft()

    def repeat(self) -> None:
        if self.last is not None and self.last.change is not SNAPSHOT:
            self._apply(self.last)

    def restart(self) -> None:
        self.cache.restart()
        self.on_the_way += self.cache.after(0, 0)

    def hello(self) -> None:
        self.view.connect(self.cache.epoch, "scheme", 16)
        self.ask_again()

    def _apply(self, event: CacheEvent) -> None:
        if not self.view.apply(event):
            self.ask_again()


STEPS = st.one_of(
    st.sets(st.sampled_from(ALL), max_size=8),
    st.sampled_from([Link.deliver, Link.deliver, Link.deliver_all, Link.lose, Link.repeat, Link.ask_again]),
    st.sampled_from([Link.restart, Link.hello]),
)


@settings(max_examples=400)
@given(st.lists(STEPS, max_size=60))
def test_it_knows_the_cache_whenever_it_is_up_to_date(steps: list[set[int] | Callable[[Link], None]]) -> None:
    link = Link()
    cache, view = link.cache, link.view
    for step in steps:
        if isinstance(step, set):
            link.on_the_way += cache.change(step)
        else:
            step(link)
        if view.position == (cache.epoch, cache.number):
            assert known(view) == cache.held and len(view) == len(cache.held)
    link.ask_again()
    link.deliver_all()
    assert view.position == (cache.epoch, cache.number) and known(view) == cache.held


def test_a_gap_is_noticed_and_changes_nothing() -> None:
    view = connected()
    assert view.apply(CacheEvent(1, 1, STORED, (1, 2)))
    assert not view.apply(CacheEvent(1, 3, REMOVED, (1,)))
    assert view.position == (1, 1) and known(view) == {1, 2}
    assert not view.apply(CacheEvent(2, 2, STORED, (3,))), "another epoch begins with a snapshot"


def test_a_snapshot_that_breaks_off_is_asked_for_again() -> None:
    view = connected()
    view.apply(CacheEvent(1, 5, SNAPSHOT, (1, 2), continues=True))
    assert view.position == (0, 0) and not view.apply(CacheEvent(1, 6, STORED, (3,)))
    view.apply(CacheEvent(1, 5, SNAPSHOT, (4,)))
    assert view.position == (1, 5) and known(view) == {1, 2, 4}
    view.apply(CacheEvent(1, 9, SNAPSHOT, (7,)))
    assert known(view) == {7}, "a new one replaces all"


def test_hello_of_another_epoch_or_scheme_forgets_and_of_the_same_does_not() -> None:
    view = connected()
    view.apply(CacheEvent(1, 1, STORED, (1,)))
    view.expect([2])
    view.connect(1, "scheme", 16)
    assert known(view) == {1, 2} and view.position == (1, 1)
    view.connect(2, "scheme", 16)
    assert not known(view) and view.position == (2, 0)
    view.apply(CacheEvent(2, 1, STORED, (1,)))
    view.connect(2, "other", 16)
    assert not known(view) and view.scheme == "other"


def test_own_prompts_count_for_a_while_or_until_events_name_them() -> None:
    clock = FakeClock()
    view = connected(clock=clock)
    view.expect([1, 2, 3])
    assert known(view) == {1, 2, 3} and len(view) == 0
    view.apply(CacheEvent(1, 1, STORED, (1,)))
    view.apply(CacheEvent(1, 2, REMOVED, (2,)))
    assert known(view) == {1, 3}
    clock.now_s += EXPECTED_FOR_S / 2
    view.expect([3])
    clock.now_s += EXPECTED_FOR_S * 0.6
    assert known(view) == {1, 3}, "asked for again, expected for longer"
    clock.now_s += EXPECTED_FOR_S
    assert known(view) == {1}
    view.expect([4])
    view.apply(CacheEvent(2, 0, SNAPSHOT, ()))
    assert not known(view), "another epoch has nothing of it"


def test_memory_is_bounded_and_what_was_known_first_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_view, "MAX_EXPECTED", 3)
    view = connected(max_hashes=4)
    view.apply(CacheEvent(1, 1, SNAPSHOT, tuple(range(6))))
    assert len(view) == 4 and known(view) == {0, 1, 2, 3}
    view.apply(CacheEvent(1, 2, REMOVED, (0, 5)))
    view.apply(CacheEvent(1, 3, STORED, (8, 9)))
    assert known(view) == {1, 2, 3, 8}
    view.expect([5, 6, 7, 10])
    assert known(view) == {1, 2, 3, 8, 6, 7, 10}
