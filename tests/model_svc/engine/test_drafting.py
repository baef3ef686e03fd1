"""Drafts change no token, no end and no block that is not the sequence's own, whatever becomes of them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.draft_lengths import FORCED, KINDS, DraftLengths
from model_svc.engine.drafting import MOST_DRAFTS_PER_STEP, UNDRAFTED, DraftLimits
from model_svc.engine.sequence import Sequence
from model_svc.grammar.matching import Matching
from tests.fakes.drafts import ScriptedForcing, ScriptedLookup, ScriptedModel
from tests.fakes.scheduling import GREEDY, Harness, expected_output, sequence
from tokenwire.requests import CancelReason, FinishReason

ALWAYS = DraftLimits(max_drafts=4, by_default=True, adaptive=False)


def drafting_harness(
    *, right: float = 0.8, seed: int = 0, limits: dict[str, Any] | None = None, **more: Any
) -> Harness:
    harness = Harness(limits={"drafts": ALWAYS} | (limits or {}), **more)
    harness.scheduler.drafting.lookup = ScriptedLookup(seed, right=right)
    return harness


def undrafted(harness: Harness) -> dict[str, int]:
    counts = harness.scheduler.drafting.counts().undrafted
    return {reason: count for reason, count in zip(UNDRAFTED, counts, strict=True) if count}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_tokens_are_those_without_drafts(right: float, overlap: bool) -> None:
    harness = drafting_harness(right=right, overlap=overlap)
    sequences = [sequence([n, n + 1, 2], max_tokens=9 + n, logprobs=0) for n in range(6)]
    harness.add(*sequences)
    harness.run()
    for each in sequences:
        assert harness.outputs[each.sequence_id] == expected_output(each.token_ids[:3], each.stop.max_tokens or 0)
        assert harness.usage(each).completion_tokens == each.stop.max_tokens
    counts = harness.scheduler.drafting.counts()
    assert counts.num_drafted > 0 and counts.num_rows > 0
    assert counts.num_accepted == (0 if right == 0.0 else counts.num_drafted if right == 1.0 else counts.num_accepted)
    assert 0 < counts.num_accepted < counts.num_drafted or right != 0.7
    assert harness.scheduler.kv.pool.num_used == 0 and not harness.scheduler.drafting.lookup.known  # type: ignore[attr-defined]


def test_right_drafts_save_steps() -> None:
    harness = drafting_harness(right=1.0)
    harness.add(sequence([1, 2, 3], max_tokens=40))
    harness.run()
    assert len(harness.runner.batches) < 20


def test_a_stop_token_among_accepted_drafts_ends_the_sequence_there() -> None:
    output = expected_output([1, 2], 12)
    for place in range(1, 12):
        harness, only = drafting_harness(right=1.0), sequence([1, 2], max_tokens=20, stop=(output[place],), logprobs=0)
        harness.add(only)
        harness.run()
        terminal = harness.ended[only.sequence_id].terminal
        assert terminal.reason is FinishReason.STOP_TOKEN and terminal.stop_token_id == output[place]
        assert harness.outputs[only.sequence_id] == output[:place]
        assert terminal.usage.completion_tokens == place


def test_no_more_tokens_than_asked_for_or_than_fit_the_context() -> None:
    """The fake runner checks that no step samples past max_tokens."""
    for max_tokens in range(1, 12):
        harness, only = drafting_harness(right=1.0, max_context_tokens=12), sequence([7] * 4, max_tokens=max_tokens)
        harness.add(only)
        harness.run()
        assert harness.reason(only) is FinishReason.LENGTH
        assert harness.outputs[only.sequence_id] == expected_output([7] * 4, min(8, max_tokens))


def test_drafts_take_what_the_budget_leaves_and_no_prompt_waits_for_them() -> None:
    harness = drafting_harness(right=1.0, budget=8)
    short, long = sequence([1, 2], max_tokens=12), sequence(list(range(30)), max_tokens=3, arrival_s=101.0)
    harness.add(short, long)
    harness.run()
    mixed = [b for b in harness.runner.batches if any(row.sequence is long and row.start < 24 for row in b.rows)]
    assert mixed and all(not row.drafts for b in mixed for row in b.rows)
    assert all(b.num_drafts <= MOST_DRAFTS_PER_STEP for b in harness.runner.batches)


def test_nobody_is_preempted_for_a_draft() -> None:
    """Blocks for what all sequences will need, and not one more."""
    harness = drafting_harness(right=0.5, num_blocks=16, max_context_tokens=16)
    harness.add(*[sequence([n] * 3, max_tokens=13, arrival_s=100.0 + n) for n in range(4)])
    harness.run()
    assert harness.scheduler.roster.num_preemptions == 0


def test_who_is_drafted_for() -> None:
    harness = drafting_harness(right=1.0, limits={"drafts": DraftLimits(max_drafts=4, adaptive=False)})
    silent, asking = sequence([1, 2], max_tokens=9), sequence([3, 4], max_tokens=9, speculation=True)
    penalised = sequence([5, 6], max_tokens=9, speculation=True, sampling=replace(GREEDY, presence_penalty=0.1))
    harness.add(silent, asking, penalised)
    harness.run()
    assert {row.sequence for b in harness.runner.batches for row in b.rows if row.drafts} == {asking}
    assert set(undrafted(harness)) - {"no_room"} == {"off", "penalties"}

    harness = drafting_harness(right=1.0)
    silent, refusing = sequence([1, 2], max_tokens=9), sequence([3, 4], max_tokens=9, speculation=False)
    harness.add(silent, refusing)
    harness.run()
    assert {row.sequence for b in harness.runner.batches for row in b.rows if row.drafts} == {silent}


def constrained(prompt: list[int], max_tokens: int, **fields: Any) -> Sequence:
    """Whose constraint is ready; the fake runner does not look at it."""
    made = sequence(prompt, max_tokens=max_tokens, **fields)
    made.constraint = Matching("")
    made.constraint.is_ready = True
    return made


def test_what_is_forced_is_drafted_before_anything_is_looked_up_and_counted_apart() -> None:
    harness = drafting_harness(right=0.0)
    harness.scheduler.drafting.forcing = ScriptedForcing(3)
    only, free = constrained([1, 2], 21), sequence([3, 4], max_tokens=9)
    harness.add(only, free)
    harness.run()
    assert harness.outputs[only.sequence_id] == expected_output([1, 2], 21)
    of_only = [len(row.drafts) for b in harness.runner.batches for row in b.rows if row.sequence is only]
    assert max(of_only) == 3 and len(of_only) < 8
    counts = harness.scheduler.drafting.counts()
    assert counts.num_forced == counts.num_forced_accepted == counts.num_accepted == sum(of_only)
    assert counts.num_drafted > counts.num_forced and counts.acceptance == 0.0


def test_where_nothing_is_forced_it_is_looked_up() -> None:
    harness = drafting_harness(right=1.0)
    harness.scheduler.drafting.forcing = ScriptedForcing(0)
    only = constrained([1, 2], 20)
    harness.add(only)
    harness.run()
    counts = harness.scheduler.drafting.counts()
    assert harness.outputs[only.sequence_id] == expected_output([1, 2], 20)
    assert counts.num_forced == 0 and counts.num_accepted == counts.num_drafted > 5


class WithoutGain(DraftLengths):
    """For which some kinds of drafts never pay and others always do, whatever steps take."""

    def __init__(self, longest: int, *kinds: int) -> None:
        super().__init__(longest)
        self.kinds = kinds

    @property
    def is_drafting(self) -> bool:
        return True

    def most(self, sequence_id: int, kind: int, num_behind: int = 0) -> int:
        return 0 if kind in self.kinds else self.longest


class Observed(WithoutGain):
    """Keeps what is said of steps: whether the draft model was asked, and how far it caught up."""

    def __init__(self, longest: int) -> None:
        super().__init__(longest)
        self.observed: list[tuple[bool, int]] = []

    def observe(self, *step: Any, modelled: bool = False, num_caught_up: int = 0) -> None:
        self.observed.append((modelled, num_caught_up))


def test_forced_drafts_that_do_not_pay_leave_their_place_to_what_is_looked_up() -> None:
    for kinds, none_pay in (((FORCED,), False), (tuple(range(len(KINDS))), True)):
        harness = drafting_harness(right=1.0, limits={"drafts": DraftLimits(max_drafts=4, by_default=True)})
        harness.scheduler.drafting.forcing = ScriptedForcing(4, right=False)
        harness.scheduler.drafting.lengths = WithoutGain(4, *kinds)
        only = constrained([1, 2], 20)
        harness.add(only)
        harness.run()
        assert harness.outputs[only.sequence_id] == expected_output([1, 2], 20)
        counts = harness.scheduler.drafting.counts()
        assert counts.num_forced == 0 and (counts.num_accepted == 0) == none_pay
        assert ("no_gain" in undrafted(harness)) == none_pay


def test_without_a_length_nobody_drafts_whatever_is_asked() -> None:
    harness, only = Harness(), sequence([1, 1, 1, 1], max_tokens=9, speculation=True)
    harness.add(only)
    harness.run()
    assert not any(b.num_drafts for b in harness.runner.batches)
    assert harness.scheduler.drafting.counts() == Harness().scheduler.drafting.counts()


def test_a_step_with_drafts_that_has_no_memory_is_made_without_them(caplog: pytest.LogCaptureFixture) -> None:
    harness, only = drafting_harness(right=1.0), sequence([1, 2], max_tokens=20)
    harness.add(only)
    harness.runner.memory_tokens = 2
    harness.run()
    (line,) = caplog.messages
    assert line.startswith("out of memory in a step of 1 sequences and ") and "no drafts for 1000 steps" in line
    load = harness.scheduler.load()
    assert load.num_out_of_memory == 1 and load.step_budget_tokens == 32
    assert harness.outputs[only.sequence_id] == expected_output([1, 2], 20)
    assert harness.scheduler.roster.num_preemptions == 0
    assert sum(b.num_drafts > 0 for b in harness.runner.batches) == 1


def test_steps_without_drafts_for_want_of_memory_are_not_taken_for_the_draft_models() -> None:
    harness = drafting_harness(limits={"drafts": DraftLimits(max_drafts=4, by_default=True, by_lookup=False)})
    drafting = harness.scheduler.drafting
    drafting.draft_model = ScriptedModel(num_behind=9)
    drafting.lengths = lengths = Observed(4)
    harness.add(sequence([1, 2], max_tokens=40))
    harness.run(until=lambda: len(lengths.observed) == 3)
    assert lengths.observed == [(True, 9)] * 3
    harness.runner.memory_tokens = 2
    harness.run(until=lambda: len(lengths.observed) == 6)
    assert lengths.observed[3:] == [(False, 0)] * 3


def test_a_row_that_its_drafts_broke_is_made_again_without() -> None:
    for overlap in (False, True):
        harness, only = drafting_harness(right=1.0, overlap=overlap), sequence([1, 2], max_tokens=20)
        other = sequence([4, 2], max_tokens=20)
        harness.runner.bad_draft = expected_output([1, 2], 9)[-1]
        assert harness.runner.bad_draft not in expected_output([4, 2], 20)
        harness.add(only, other)
        harness.run()
        assert harness.outputs[only.sequence_id] == expected_output([1, 2], 20)
        assert harness.outputs[other.sequence_id] == expected_output([4, 2], 20)
        assert undrafted(harness)["failed"] > 5
        assert harness.reason(only) is FinishReason.LENGTH


def test_what_breaks_without_drafts_too_is_an_error() -> None:
    harness, bad = drafting_harness(right=1.0), sequence([3, 4], max_tokens=9)
    harness.add(bad)
    harness.step()
    harness.runner.bad_sequences.add(bad.sequence_id)
    harness.run()
    assert harness.reason(bad) is FinishReason.ERROR and harness.outputs[bad.sequence_id] == expected_output([3, 4], 1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.booleans(),
    st.lists(
        st.tuples(
            st.integers(1, 20), st.integers(1, 20), st.sampled_from([None, True, False]), st.integers(0, 3),
            st.integers(-1, 1),
        ),
        min_size=1, max_size=12,
    ),
    st.integers(8, 20),
)  # fmt: skip
def test_any_history(
    seed: int, right: float, overlap: bool, requests: list[tuple[int, int, bool | None, int, int]], num_blocks: int
) -> None:
    """Prompts of every length, some with a common beginning; preemption, aborts; some drafted for, some not."""
    harness = drafting_harness(
        right=right, seed=seed, overlap=overlap, num_blocks=num_blocks, max_context_tokens=32, budget=16, batch=5
    )
    rng = harness.scheduler.drafting.lookup.rng  # type: ignore[attr-defined]
    added: list[Sequence] = []
    for length, max_tokens, speculation, kind, priority in requests:
        prompt = list(range(length)) if kind else [rng.randrange(997) for _ in range(length)]
        one = sequence(
            prompt, max_tokens=min(max_tokens, 32 - length), speculation=speculation, priority=priority,
            arrival_s=harness.clock.now_s, logprobs=0 if kind == 2 else None,
            stop=(expected_output(prompt, 5)[-1],) if kind == 3 else (),
        )  # fmt: skip
        added.append(one)
        harness.add(one)
        for _ in range(rng.randrange(4)):
            harness.step()
        if rng.random() < 0.1:
            harness.scheduler.abort(rng.choice(added).sequence_id, CancelReason.CLIENT)
    harness.run()
    for one in added:
        output, wanted = harness.outputs[one.sequence_id], expected_output(one.token_ids[: one.num_prompt_tokens], 31)
        stop = next((at for at, token in enumerate(wanted) if token in one.stop.stop_token_ids), 31)
        whole = wanted[: min(stop, one.stop.max_tokens or 0)]
        assert output == whole or (
            harness.reason(one) is FinishReason.CANCELLED and output == whole[: len(output)]
        )  # fmt: skip
    assert harness.scheduler.kv.pool.num_used == 0 and not harness.scheduler.drafting.lookup.known  # type: ignore[attr-defined]
