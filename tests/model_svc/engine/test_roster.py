"""Who runs and who waits, without steps: what a scheduler over a roster promises is for `test_scheduler.py`."""

from dataclasses import replace
from typing import Any

import pytest

from model_svc.engine.limits import Limits
from model_svc.engine.roster import CONSTRAINT_POLL_S, Roster
from model_svc.engine.sequence import PENDING, Sequence, SequenceStatus
from model_svc.grammar.matching import Matching
from tests.fakes.runner import runner_info
from tests.fakes.scheduling import sequence


class Checked:
    """A roster that is checked after every change, and those that have not left it."""

    def __init__(self, *, batch: int = 4, budget: int = 16, num_blocks: int = 64, **limits: Any) -> None:
        info = replace(runner_info(num_blocks=num_blocks), max_batch_size=batch)
        self.roster = Roster(info, Limits(batch, budget, **limits))
        self.open: dict[int, Sequence] = {}

    def add(self, *sequences: Sequence) -> None:
        for each in sequences:
            self.open[each.sequence_id] = each
            self.roster.add(each)
        self.check()

    def admit(self, now_s: float = 100.0, *, paused: bool = False) -> list[Sequence]:
        self.roster.admit(now_s, paused=paused)
        self.check()
        return self.roster.running

    def rows(self) -> list[tuple[Sequence, int]]:
        """Whom the next step computes, and how many tokens; it is computed."""
        rows = self.roster.rows()
        self.check()
        for row in rows:
            row.sequence.num_computed_tokens = row.own_end
        return [(row.sequence, row.num_new_tokens) for row in rows]

    def leave(self, each: Sequence) -> None:
        self.roster.leave(each)
        del self.open[each.sequence_id]
        self.check()

    def check(self) -> None:
        self.roster.check_integrity(self.open)


def test_decodes_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    made = Checked()
    first, long, last = (sequence([n] * n, arrival_s=100.0 + n) for n in (3, 20, 21))
    made.add(first)
    made.admit()
    assert made.rows() == [(first, 3)]
    first.token_ids.append(7)
    made.add(long, last)
    assert made.admit() == [first, long], "what would get nothing of this step's budget waits"
    assert made.rows() == [(first, 1), (long, 15)]
    assert made.admit() == [first, long, last]
    assert made.rows() == [(long, 5), (last, 11)], "there is nothing of the first to compute"


def test_who_is_preempted_waits_in_front_and_who_leaves_makes_room() -> None:
    made = Checked(batch=2)
    first, second, third = (sequence([n], arrival_s=100.0 + n) for n in (1, 2, 3))
    made.add(first, second, third)
    assert made.admit() == [first, second]
    made.roster.preempt(second)
    made.check()
    assert (second.status, second.slot, second.block_table) == (SequenceStatus.WAITING, -1, [])
    assert made.roster.num_preemptions == second.num_preemptions == 1
    assert made.admit() == [first, second]
    made.leave(first)
    made.leave(third)
    assert third.status is first.status is SequenceStatus.FINISHED
    assert made.admit() == [second] and not len(made.roster.waiting)


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    made = Checked(batch=2)
    low, lower, high = (sequence([n], arrival_s=100.0 + n, priority=p) for n, p in ((1, 0), (2, -1), (3, 1)))
    made.add(low, lower)
    made.admit()
    made.add(high)
    assert made.admit() == [high, low]


def test_a_decode_without_a_block_preempts_the_lowest_rank_and_may_be_that_itself() -> None:
    made = Checked(num_blocks=16)  # of four positions each
    first, second = (sequence([n] * 4 * n, arrival_s=100.0 + n) for n in (7, 8))
    made.roster.budget.max_tokens = 64
    made.add(first, second)
    assert made.admit() == [first, second]
    assert made.rows() == [(first, 28), (second, 32)]
    for each in (first, second):
        each.token_ids.append(1)
    assert made.rows() == [(first, 1)], "it got the last block"
    assert made.roster.running == [first] and second.num_preemptions == 1


def test_a_sequence_whose_pending_token_is_its_last_has_no_row() -> None:
    made = Checked()
    only = sequence([1, 2, 3], max_tokens=1)
    made.add(only)
    made.admit()
    made.rows()
    only.token_ids.append(PENDING)
    assert made.rows() == []


def test_when_something_may_start() -> None:
    made = Checked(window_s=0.5)
    opens_s = made.roster.opens_s
    assert opens_s(100.0) is None
    waiting = sequence([1, 2], arrival_s=100.0)
    waiting.constraint = Matching("")
    made.add(waiting)
    assert opens_s(100.2) == 100.5 and opens_s(100.2, paused=True) is None
    assert opens_s(100.5) == 100.5 + CONSTRAINT_POLL_S, "its constraint is not ready"
    waiting.constraint.is_ready = True
    assert opens_s(100.6) == 100.6
    assert made.admit(100.6, paused=True) == []
    assert made.admit(100.6) == [waiting]
    made.roster.preempt(waiting)
    assert opens_s(100.7, paused=True) == 100.7, "what was preempted goes on"


def test_a_broken_promise_is_noticed() -> None:
    made = Checked()
    one, other = sequence([1]), sequence([2])
    made.add(one, other)
    made.admit()
    with pytest.raises(AssertionError, match="in no list"):
        made.roster.check_integrity({**made.open, 0: sequence([3])})
    other.slot = one.slot
    with pytest.raises(AssertionError, match="two owners"):
        made.check()
