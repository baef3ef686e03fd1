"""Lengths in simulated time: never far below an engine without drafts, and far above where they are right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.draft_lengths import FORCED, KINDS, MODEL, DraftLengths
from model_svc.engine.step_costs import StepCosts
from tests.fakes.simulated_drafts import Cost, Kind, simulate


def linear(plain: float, per_row: float, per_draft: float) -> Cost:
    return lambda rows, drafted, drafts: plain + per_row * drafted + per_draft * drafts


MEASURED = {1: linear(4.4, 0.3, 0.16), 8: linear(6.3, 0.44, 0.2), 32: linear(16.6, 0.36, 0.32)}
"""About what SmolLM2-135M took on two cores, by rows."""
NOWHERE = Kind(found=1.0, right=0.0)
SELDOM = Kind(found=0.6, right=0.15)
COPIES = Kind(found=0.95, right=0.95)


@pytest.mark.parametrize("rows", MEASURED)
@pytest.mark.parametrize("kind", [NOWHERE, SELDOM, Kind(1.0, 0.3, 40), Kind(0.1, 0.5), Kind(1.0, 0.05, 2000)], ids=str)
def test_what_does_not_help_costs_next_to_nothing(rows: int, kind: Kind) -> None:
    for seed in range(3):
        assert simulate(MEASURED[rows], [kind] * rows, 1500, seed=seed) > 0.96


@pytest.mark.parametrize(("rows", "least"), [(1, 3.0), (8, 1.5), (32, 0.97)])
def test_what_is_right_is_drafted_far(rows: int, least: float) -> None:
    assert simulate(MEASURED[rows], [COPIES] * rows, 1000) > least


def test_kinds_do_not_spoil_each_others_estimates() -> None:
    """Forced drafts that are always right, looked up ones that never are, and the other way round."""
    for right, wrong in ((FORCED, KINDS.index("long_match")), (KINDS.index("long_match"), FORCED)):
        lengths = DraftLengths(8)
        for _ in range(100):
            lengths.begin_step(1)
            lengths.verified(1, right, 8, 8)
            lengths.verified(1, wrong, 8, 0)
            lengths.observe(1, 0, 0, 0, MEASURED[1](1, 0, 0) / 1000)
        lengths.begin_step(1)
        assert lengths.most(1, right) == lengths.most(2, right) == 8
        assert lengths.most(1, wrong) <= 1 and lengths.most(2, wrong) <= 1


def test_one_that_copies_among_others_that_do_not() -> None:
    """It alone is drafted for: of 8 rows it makes several tokens a step while they go on as before."""
    mixed = simulate(MEASURED[8], [COPIES, *[NOWHERE] * 7], 2000)
    assert mixed > 1.1


def test_what_helped_before_and_helps_no_more_is_given_up_soon() -> None:
    """The first 300 steps help, the 300 after them do not; only the latter count."""
    lengths = DraftLengths(8)
    cost, spent, tokens = MEASURED[1], 0.0, 0
    for step in range(600):
        lengths.begin_step(1)
        wanted = lengths.most(1, 1)
        right = wanted if step < 300 else 0
        lengths.considered(1, wanted)
        if wanted:
            lengths.verified(1, 1, wanted, right)
        lengths.observe(1, int(wanted > 0), wanted, right, cost(1, int(wanted > 0), wanted) / 1000)
        if step >= 300:
            spent, tokens = spent + cost(1, int(wanted > 0), wanted), tokens + 1
    assert tokens / spent > 0.96 / cost(1, 0, 0)


def test_what_begins_to_help_is_found_out() -> None:
    """After a thousand steps of drafts that were wrong."""
    lengths, drafted = DraftLengths(8), []
    for step in range(1600):
        lengths.begin_step(1)
        wanted = lengths.most(1, 1)
        lengths.considered(1, wanted)
        if wanted:
            lengths.verified(1, 1, wanted, wanted if step >= 1000 else 0)
        took = MEASURED[1](1, int(wanted > 0), wanted) / 1000
        lengths.observe(1, int(wanted > 0), wanted, wanted if step >= 1000 else 0, took)
        drafted.append(wanted)
    assert sum(drafted[500:1000]) < 30
    assert sum(drafted[1500:]) > 600


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    per_row=st.floats(0, 0.3),
    per_draft=st.floats(0, 0.3),
    found=st.floats(0, 1),
    right=st.floats(0, 1),
    length=st.integers(10, 500),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 1000),
)
def test_no_machine_and_no_text_loses_more_than_a_twentieth(
    rows: int, per_row: float, per_draft: float, found: float, right: float, length: int, noise: float, seed: int
) -> None:
    """Costs of a drafted row and of a draft in parts of a step without any. What steps vary by is averaged out."""
    cost = linear(10.0, 10 * per_row, 10 * per_draft)
    speed = simulate(cost, [Kind(found, right, length)] * rows, 1500, noise=noise, seed=seed)
    assert speed > 0.95 - noise / 60


@pytest.mark.parametrize("right", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_draft_model_that_costs_more_than_it_saves_is_left_alone(rows: int, right: float) -> None:
    """Half a step for each draft, and contexts of 150 tokens for sequences that end after 100."""
    speed = simulate(
        linear(10.0, 1.0, 5.0), [Kind(1.0, right, 100)] * rows, 3000, by=MODEL, context=150, catch_up=1.0
    )  # fmt: skip
    assert speed > 0.95


def test_a_draft_model_that_saves_more_is_used() -> None:
    speed = simulate(linear(10.0, 0.5, 1.0), [Kind(1.0, 0.85, 200)], 3000, by=MODEL, context=100, catch_up=0.1)
    assert speed > 1.6


def test_looking_up_stays_cheap_beside_a_draft_model_that_is_not() -> None:
    costs = StepCosts()
    for step in range(60):
        costs.observe(1, 0, 0, 5.0)
        costs.observe(1, 1, step % 7 + 1, 5.0 + 0.1 * (step % 7 + 1))
        costs.observe(1, 1, step % 7 + 1, 5.0 + 3.0 * (step % 7 + 1), modelled=True)
    assert costs.added(1).per_draft < 0.2 and costs.added(1, modelled=True).per_draft > 1.5


def test_costs_are_learned_whatever_they_are() -> None:
    for per_row, per_draft in ((0.0, 0.0), (0.3, 0.1), (0.0, 0.5), (1.0, 0.0)):
        costs, cost = StepCosts(), linear(5.0, per_row, per_draft)
        assert costs.plain_s(4) is None
        for step in range(60):
            drafted, drafts = (0, 0) if step % 3 == 0 else (step % 4 + 1, (step % 4 + 1) * (step % 7 + 1))
            costs.observe(4, drafted, drafts, cost(4, drafted, drafts))
        assert costs.plain_s(4) == pytest.approx(5.0)
        added = costs.added(4)
        for drafted, drafts in ((1, 1), (4, 20)):
            told = 5.0 + drafted * added.per_row + drafts * added.per_draft
            assert told == pytest.approx(cost(4, drafted, drafts), rel=0.05)


def test_a_step_that_was_held_up_is_not_believed() -> None:
    costs = StepCosts()
    for _ in range(10):
        costs.observe(1, 0, 0, 0.005)
    costs.observe(1, 0, 0, 0.5)
    assert (costs.plain_s(1) or 0) < 0.0055


def test_nothing_is_drafted_before_it_is_known_what_a_step_takes_and_now_and_then_to_see_it() -> None:
    lengths, drafted = DraftLengths(4), []
    for _ in range(300):
        lengths.begin_step(1)
        if lengths.is_drafting:
            wanted = lengths.most(1, 1)
            lengths.verified(1, 1, wanted, wanted)
        else:
            wanted = 0
        lengths.considered(1, wanted)
        lengths.observe(1, int(wanted > 0), wanted, wanted, 0.005 + 0.0001 * wanted)
        drafted.append(wanted)
    assert drafted[:2] == [0, 0] and drafted[2] > 0
    assert 5 <= sum(wanted == 0 for wanted in drafted[2:]) <= 7


def test_an_idle_sequence_is_looked_at_now_and_then() -> None:
    lengths = DraftLengths(4)
    looks = []
    for _ in range(64):
        looks.append(not lengths.is_idle(1))
        lengths.considered(1, 0)
    assert all(looks[:8]) and sum(looks[8:]) == 3
    lengths.considered(1, 2)
    assert not lengths.is_idle(1)
