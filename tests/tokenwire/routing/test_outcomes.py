from collections.abc import Callable

import pytest

from tests.fakes.replica import FakeClock
from tokenwire.errors import Internal, InvalidRequest, MessageTooLarge, Overloaded, TokenwireError, Unavailable
from tokenwire.requests import FinishReason, Terminal
from tokenwire.routing.breaker import Breaker, BreakerState
from tokenwire.routing.outcomes import Outcomes

GOOD = Terminal(FinishReason.LENGTH)


def bad(error: TokenwireError | None = None) -> Terminal:
    return Terminal(FinishReason.ERROR, error=error or Internal("a step raised"))


class Case:
    def __init__(self, max_failures: int = 2) -> None:
        self.clock = FakeClock()
        self.breaker = Breaker(max_failures, clock=self.clock)
        self.changes: list[BreakerState] = []
        self.outcomes = Outcomes("a:1", self.breaker, lambda: self.changes.append(self.breaker.state))

    def open(self) -> None:
        for handle in (1, 2):
            self.outcomes.on_submit(handle)
            self.outcomes.on_finishes(True, [(handle, bad())])
        assert self.breaker.state is BreakerState.OPEN
        self.clock.now_s += 1


def test_a_step_that_ends_many_counts_once() -> None:
    case = Case()
    case.outcomes.on_finishes(True, [(handle, bad()) for handle in range(1, 33)])
    assert case.breaker.state is BreakerState.CLOSED
    case.outcomes.on_lost(True, [40, 41, 42], Unavailable("gone"))
    assert case.breaker.state is BreakerState.OPEN and case.breaker.last_failure == "gone"
    assert case.changes == [BreakerState.OPEN]


def test_a_message_too_large_for_the_tier_is_not_its_failure() -> None:
    case = Case()
    for handle in range(5):
        case.outcomes.on_submit(handle)
        case.outcomes.on_lost(True, [handle], MessageTooLarge("message too large: 20000000 vs. 16777216"))
    assert case.breaker.state is BreakerState.CLOSED and not case.breaker.last_failure


def test_one_good_end_in_a_frame_speaks_for_it() -> None:
    case = Case()
    for _ in range(5):
        case.outcomes.on_finishes(True, [(1, bad()), (2, GOOD)])
    assert case.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    "terminal",
    [
        Terminal(FinishReason.CANCELLED),
        Terminal(FinishReason.DEADLINE),
        bad(InvalidRequest("max_tokens: 0")),
        bad(Overloaded("full")),
        bad(Unavailable("this one stops", reason="SHUTTING_DOWN")),
    ],
)
def test_what_is_not_its_fault_counts_neither_way(terminal: Terminal) -> None:
    case = Case()
    case.outcomes.on_finishes(True, [(1, bad())])
    case.outcomes.on_finishes(True, [(2, terminal)])
    case.outcomes.on_lost(True, [], Unavailable("an idle stream ended"))
    assert case.breaker.state is BreakerState.CLOSED
    case.outcomes.on_finishes(True, [(3, bad(Unavailable("engine lost")))])
    assert case.breaker.state is BreakerState.OPEN


OLD: list[Callable[[Outcomes], None]] = [
    lambda outcomes: outcomes.on_tokens(True, [1, 2]),
    lambda outcomes: outcomes.on_finishes(True, [(2, GOOD)]),
    lambda outcomes: outcomes.on_finishes(True, [(2, bad())]),
    lambda outcomes: outcomes.on_tokens(False, [9]),
    lambda outcomes: outcomes.on_finishes(False, [(9, GOOD)]),
    lambda outcomes: outcomes.on_lost(False, [9], Unavailable("")),
]


@pytest.mark.parametrize("old", OLD)
def test_while_it_is_tried_what_was_submitted_before_says_nothing(old: Callable[[Outcomes], None]) -> None:
    case = Case()
    case.open()
    old(case.outcomes)
    case.outcomes.on_submit(3)
    assert case.breaker.state is BreakerState.HALF_OPEN
    old(case.outcomes)
    assert case.breaker.state is BreakerState.HALF_OPEN
    case.outcomes.on_tokens(True, [2, 3])
    assert case.breaker.state is BreakerState.CLOSED


def test_a_trial_that_is_lost_opens_it_again_and_a_new_stream_begins_anew() -> None:
    case = Case()
    case.open()
    case.outcomes.on_submit(3)
    case.outcomes.on_lost(True, [3], Internal("garbage"))
    assert case.breaker.state is BreakerState.OPEN and case.breaker.last_failure == "garbage"
    case.clock.now_s += 2
    case.outcomes.on_stream()
    case.outcomes.on_tokens(True, [1])
    assert case.breaker.state is BreakerState.OPEN, "nothing was submitted on it yet"
    case.outcomes.on_submit(1)
    case.outcomes.on_finishes(True, [(1, GOOD)])
    assert case.breaker.state is BreakerState.CLOSED
    half, open_, closed = BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.CLOSED
    assert case.changes == [open_, half, open_, half, closed]
