from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.roster import CONSTRAINT_POLL_S
from model_svc.engine.sequence import Sequence
from model_svc.grammar.matching import Matching
from tests.fakes.scheduling import GREEDY, Harness, expected_output, sequence
from tokenwire.errors import FailedPrecondition, Internal
from tokenwire.requests import CancelReason, FinishReason


def test_one_sequence_runs_to_its_limit() -> None:
    harness, only = Harness(), sequence([5, 6, 7], max_tokens=4)
    harness.add(only)
    harness.run()
    assert harness.outputs[only.sequence_id] == expected_output([5, 6, 7], 4)
    terminal = harness.ended[only.sequence_id].terminal
    assert terminal.reason is FinishReason.LENGTH
    assert (terminal.usage.prompt_tokens, terminal.usage.completion_tokens) == (3, 4)
    assert harness.scheduler.kv.pool.num_used == 0


def test_a_stop_token_ends_the_sequence_and_is_not_output() -> None:
    output = expected_output([1, 2], 5)
    harness, only = Harness(), sequence([1, 2], max_tokens=20, stop=(output[3],))
    harness.add(only)
    harness.run()
    terminal = harness.ended[only.sequence_id].terminal
    assert terminal.reason is FinishReason.STOP_TOKEN and terminal.stop_token_id == output[3]
    assert harness.outputs[only.sequence_id] == output[:3]
    assert terminal.usage.completion_tokens == 3


def test_the_end_of_the_context_is_a_length() -> None:
    harness, only = Harness(max_context_tokens=10), sequence([1] * 6, max_tokens=100)
    harness.add(only)
    harness.run()
    assert harness.reason(only) is FinishReason.LENGTH and len(harness.outputs[only.sequence_id]) == 4


def test_prompts_are_prefilled_in_chunks_while_others_decode() -> None:
    harness = Harness(budget=7)
    short, long = sequence([1, 2], max_tokens=12), sequence(list(range(30)), max_tokens=3, arrival_s=101.0)
    harness.add(short, long)
    harness.run()
    chunks = [row.num_new_tokens for b in harness.runner.batches for row in b.rows if row.sequence is long]
    assert max(chunks) <= 7 and sum(chunks) == 32
    mixed = [b for b in harness.runner.batches if len(b.rows) == 2]
    assert mixed, "prefill and decode shared no step"
    assert harness.outputs[long.sequence_id] == expected_output(list(range(30)), 3)
    assert harness.outputs[short.sequence_id] == expected_output([1, 2], 12)


def test_a_prompt_of_one_token_runs_in_the_step_that_admits_it() -> None:
    harness, only = Harness(), sequence([9], max_tokens=1)
    harness.add(only)
    harness.step()
    assert harness.outputs[only.sequence_id] == expected_output([9], 1)


def test_higher_priority_first_then_arrival() -> None:
    harness = Harness(batch=1)
    late, early = sequence([1], max_tokens=1, arrival_s=102.0), sequence([2], max_tokens=1, arrival_s=101.0)
    urgent = sequence([3], max_tokens=1, arrival_s=103.0, priority=5)
    harness.add(late, early, urgent)
    harness.run()
    assert list(harness.ended) == [urgent.sequence_id, early.sequence_id, late.sequence_id]


def test_preemption_recomputes_and_changes_no_token() -> None:
    harness = Harness(num_blocks=8, max_context_tokens=32)
    sequences = [sequence([i] * 6, max_tokens=20, arrival_s=100.0 + i) for i in range(4)]
    harness.add(*sequences)
    harness.run()
    assert harness.scheduler.roster.num_preemptions > 0
    for each in sequences:
        assert harness.outputs[each.sequence_id] == expected_output(each.token_ids[:6], 20)


@pytest.mark.parametrize("reason", list(CancelReason))
def test_an_abort_frees_the_blocks_at_once_queued_or_running(reason: CancelReason) -> None:
    harness = Harness(batch=1)
    running, waiting = sequence([1] * 9), sequence([2] * 9, arrival_s=101.0)
    harness.add(running, waiting)
    harness.step()
    assert harness.scheduler.kv.pool.num_used == 3
    for each in (waiting, running):
        harness.scheduler.abort(each.sequence_id, reason)
        harness.scheduler.abort(each.sequence_id, reason)
        harness.scheduler.check_integrity()
    assert harness.scheduler.kv.pool.num_used == 0
    harness.step()
    wanted = {"CLIENT": "CANCELLED", "SHUTDOWN": "CANCELLED"}.get(reason.name, reason.name)
    assert {harness.reason(running).name, harness.reason(waiting).name} == {wanted}


def test_deadlines_end_queued_and_running_sequences_with_what_they_have() -> None:
    harness = Harness(batch=1)
    running = sequence([1, 2], max_tokens=50, deadline_s=100.035)
    waiting = sequence([3], arrival_s=101.0, deadline_s=100.015)
    harness.add(running, waiting)
    harness.run()
    assert harness.reason(running) is FinishReason.DEADLINE and harness.reason(waiting) is FinishReason.DEADLINE
    usage = harness.ended[running.sequence_id].terminal.usage
    assert usage.completion_tokens == len(harness.outputs[running.sequence_id]) == 4
    assert harness.ended[waiting.sequence_id].terminal.usage.completion_tokens == 0
    assert harness.scheduler.kv.pool.num_used == 0


def test_a_bad_row_ends_its_own_sequence_alone() -> None:
    harness = Harness()
    good, bad = sequence([1, 2], max_tokens=3), sequence([3, 4], max_tokens=3)
    harness.runner.bad_sequences.add(bad.sequence_id)
    harness.add(good, bad)
    harness.run()
    error = harness.ended[bad.sequence_id].terminal.error
    assert isinstance(error, Internal) and error.reason == "SEQUENCE_FAILED"
    assert harness.outputs[good.sequence_id] == expected_output([1, 2], 3)


def test_earlier_output_of_a_resumed_request_counts_as_output() -> None:
    whole = expected_output([1, 2, 3], 6)
    harness = Harness()
    resumed = sequence([1, 2, 3, *whole[:4]], max_tokens=6)
    resumed.num_generated_before = 4
    harness.add(resumed)
    harness.run()
    usage = harness.ended[resumed.sequence_id].terminal.usage
    assert harness.outputs[resumed.sequence_id] == whole[4:]
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 6)


def test_a_pool_smaller_than_one_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(FailedPrecondition, match="holds 16 tokens, less than one context of 64"):
        Harness(num_blocks=4)


def test_a_higher_priority_that_finds_no_room_takes_that_of_a_lower_one() -> None:
    harness = Harness(batch=2, num_blocks=16, max_context_tokens=60)
    low = [sequence([i] * 8, max_tokens=30, arrival_s=100.0 + i) for i in range(2)]
    harness.add(*low)
    for _ in range(5):
        harness.step()
    urgent = sequence([7] * 30, max_tokens=3, priority=2, arrival_s=105.0)
    harness.add(urgent)
    harness.step()
    assert urgent.slot >= 0 and low[1].num_preemptions == 1 and low[0].slot >= 0
    harness.run()
    for each in (*low, urgent):
        prompt = each.token_ids[: each.num_prompt_tokens]
        assert harness.outputs[each.sequence_id] == expected_output(prompt, each.stop.max_tokens or 0)


@pytest.mark.parametrize("shared", [True, False])
def test_room_for_a_higher_priority_is_made_for_what_the_cache_does_not_hold(shared: bool) -> None:
    """Its prefix is held by one of its own priority, so the blocks of a lower one are enough; not so without that."""
    harness = Harness(batch=4, num_blocks=20, max_context_tokens=80, budget=80, block_size=4)
    prefix = list(range(40))
    holder = sequence([*prefix, 1], max_tokens=30, priority=5)
    low = sequence([99] * 17, max_tokens=30, arrival_s=101.0)
    harness.add(holder, low)
    for _ in range(3):
        harness.step()
    beginning = prefix if shared else [77] * 40
    urgent = sequence([*beginning, 2, 3, 4, 5, 6, 7, 8, 9, 10], max_tokens=2, priority=5, arrival_s=102.0)
    harness.add(urgent)
    harness.step()
    assert (urgent.slot >= 0) is shared and low.num_preemptions == shared
    harness.run()
    assert harness.outputs[low.sequence_id] == expected_output([99] * 17, 30)


def test_fair_shares_never_preempt() -> None:
    harness = Harness(batch=1)
    harness.add(sequence([1] * 20, max_tokens=30, tenant="a"))
    harness.step()
    harness.add(sequence([2], max_tokens=2, tenant="b"))
    harness.run()
    assert harness.scheduler.roster.num_preemptions == 0


def test_an_urgent_prompt_does_not_wait_behind_the_prefill_of_a_long_one() -> None:
    harness = Harness(budget=8, max_context_tokens=200)
    long, urgent = sequence(list(range(150)), max_tokens=2), sequence([9] * 8, max_tokens=2, priority=1)
    harness.add(long)
    harness.step()
    harness.add(urgent)
    for _ in range(3):
        harness.step()
    assert len(harness.outputs[urgent.sequence_id]) == 2
    harness.run()


def test_lower_priorities_that_fill_the_steps_do_not_hold_up_a_higher_one() -> None:
    for batch in (4, 64):
        harness = Harness(batch=batch, budget=4)
        harness.add(*(sequence([i], max_tokens=40, priority=-10) for i in range(4)))
        for _ in range(3):
            harness.step()
        urgent = sequence([7, 8, 9], max_tokens=3, priority=100)
        harness.add(urgent)
        for _ in range(6):
            harness.step()
        assert harness.reason(urgent) is FinishReason.LENGTH, batch
        harness.run()


def test_nobody_is_preempted_for_what_could_not_start_even_then() -> None:
    harness = Harness(num_blocks=20, max_context_tokens=80, budget=80)
    high = sequence([1] * 40, max_tokens=30, priority=5)
    low = [sequence([i] * 4, max_tokens=20) for i in range(2, 4)]
    harness.add(high, *low)
    harness.step()
    harness.add(sequence([9] * 48, max_tokens=2, priority=5, arrival_s=101.0))
    for _ in range(5):
        harness.step()
    assert harness.scheduler.roster.num_preemptions == 0
    harness.run()


def test_paused_nothing_new_starts_and_what_runs_goes_on_even_after_preemption() -> None:
    harness = Harness(num_blocks=8, max_context_tokens=32)
    running = [sequence([i] * 6, max_tokens=20, arrival_s=100.0 + i) for i in range(3)]
    harness.add(*running)
    harness.step()
    harness.scheduler.paused = True
    waiting, expiring = sequence([9], max_tokens=2), sequence([8], max_tokens=2, deadline_s=100.05)
    harness.add(waiting, expiring)
    harness.run(until=lambda: all(each.sequence_id in harness.ended for each in running))
    assert harness.scheduler.roster.num_preemptions > 0
    assert harness.reason(expiring) is FinishReason.DEADLINE
    assert waiting.first_scheduled_s is None and harness.scheduler.load().paused
    assert harness.scheduler.idle_s() is None, "a paused engine with nothing running sleeps"
    harness.scheduler.paused = False
    assert harness.scheduler.idle_s() == 0
    harness.run()
    assert harness.outputs[waiting.sequence_id] == expected_output([9], 2)


def test_a_paused_engine_wakes_for_the_next_deadline() -> None:
    harness = Harness()
    harness.scheduler.paused = True
    harness.add(sequence([8], deadline_s=harness.clock.now_s + 0.25), sequence([9]))
    assert harness.scheduler.idle_s() == pytest.approx(0.25)
    harness.clock.now_s += 0.25
    harness.step()
    assert len(harness.ended) == 1 and harness.scheduler.idle_s() is None


def test_what_starts_does_not_have_to_give_way_at_once() -> None:
    """A block for each running sequence stays free when another starts: the next token of one that runs needs it."""
    harness = Harness(num_blocks=16, max_context_tokens=60, budget=60)
    first, second = sequence([1] * 8, max_tokens=8), sequence([2] * 56, max_tokens=2, arrival_s=101.0)
    harness.add(first)
    harness.step()
    harness.add(second)
    harness.run()
    assert harness.scheduler.roster.num_preemptions == 0
    assert harness.outputs[second.sequence_id] == expected_output([2] * 56, 2)


PENALISED = replace(GREEDY, repetition_penalty=1.5)
"""Means nothing to the fake runner; its next step must not be launched before its last token is known."""
ACTIONS = st.one_of(
    st.tuples(
        st.just("add"), st.integers(1, 30), st.integers(1, 25), st.integers(-2, 2), st.integers(0, 3),
        st.integers(0, 2), st.integers(1, 3), st.sampled_from([None, 0]), st.sampled_from([False, False, True]),
    ),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 6)),
)  # fmt: skip
LIMITS = st.fixed_dictionaries(
    {"window_s": st.sampled_from([0.0, 0.05]), "window_requests": st.integers(0, 3)},
    optional={"tenant_weights": st.just({"t1": 2.5})},
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(ACTIONS, max_size=40),
    st.integers(1, 6),
    st.integers(1, 24),
    st.integers(16, 30),
    LIMITS,
    st.booleans(),
)
def test_any_history_ends_every_sequence_once_with_the_right_tokens(
    actions: list[tuple], batch: int, budget: int, blocks: int, limits: dict[str, Any], overlap: bool
) -> None:
    """Tenants, priorities, shared prefixes, choices, deadlines, cancels and pauses, in any order; nobody starves."""
    harness = Harness(
        batch=batch, budget=budget, num_blocks=blocks, max_context_tokens=60, limits=limits, overlap=overlap
    )
    added: list[tuple[Sequence, list[int], int]] = []
    for name, *values in actions:
        if name == "add":
            length, max_tokens, priority, deadline, tenant, num_choices, logprobs, penalised = values
            prompt = [(tenant // 2) * 7 + i for i in range(length)]  # two of three tenants share their prefixes
            for choice in range(num_choices):
                new = sequence(
                    prompt,
                    max_tokens=max_tokens,
                    priority=priority,
                    arrival_s=harness.clock.now_s,
                    deadline_s=harness.clock.now_s + 0.2 * deadline if deadline else None,
                    tenant=f"t{tenant}",
                    choice=choice,
                    prompt_logprobs=logprobs,
                    logprobs=logprobs,
                    sampling=PENALISED if penalised else GREEDY,
                )
                added.append((new, prompt, max_tokens))
                harness.add(new)
        elif name == "abort" and added:
            harness.scheduler.abort(added[values[0] % len(added)][0].sequence_id, CancelReason.CLIENT)
        elif name == "pause":
            harness.scheduler.paused = values[0]
        elif name == "step":
            for _ in range(values[0]):
                harness.step()
    harness.scheduler.paused = False
    harness.run()
    assert set(harness.ended) == {each.sequence_id for each, _, _ in added}
    assert harness.scheduler.kv.pool.num_used == 0
    assert len(harness.scheduler.roster.waiting) == 0 and harness.scheduler.idle_s() is None
    for each, prompt, max_tokens in added:
        output = harness.outputs[each.sequence_id]
        assert output == expected_output(prompt, len(output))
        assert harness.usage(each).completion_tokens == len(output)
        error = harness.ended[each.sequence_id].terminal.error
        assert error is None or error.reason == "DEADLINE_UNREACHABLE"
        if harness.reason(each) is FinishReason.LENGTH:
            assert len(output) == max_tokens
        if output and each.prompt_logprobs is not None:
            assert harness.prompt_logprobs.get(each.sequence_id, []) == prompt[1:]


def unready(prompt: list[int], **fields: Any) -> Sequence:
    """Whose matcher is still being made."""
    made = sequence(prompt, **fields)
    made.constraint = Matching("")
    return made


def test_any_number_that_wait_for_their_constraint_hold_nobody_up() -> None:
    harness = Harness(batch=4)
    many = [unready([n], tenant="grammars", arrival_s=100.0 + n) for n in range(40)]
    harness.add(*many, free := sequence([5], arrival_s=200.0))
    assert harness.scheduler.idle_s() == 0.0
    harness.run(until=lambda: free.sequence_id in harness.ended)
    assert harness.outputs[free.sequence_id] == expected_output([5], 8)
    assert harness.scheduler.idle_s() == pytest.approx(CONSTRAINT_POLL_S)
    assert many[30].constraint is not None
    many[30].constraint.is_ready = True
    assert harness.scheduler.idle_s() == 0.0
    harness.run(until=lambda: many[30].sequence_id in harness.ended)
    assert harness.reason(many[30]) is FinishReason.LENGTH


def test_a_deadline_that_is_nearer_than_the_next_look_at_a_constraint_wakes_the_engine() -> None:
    harness = Harness()
    harness.add(due := unready([1], deadline_s=harness.clock() + CONSTRAINT_POLL_S / 2))
    idle_s = harness.scheduler.idle_s()
    assert idle_s is not None and 0 < idle_s <= CONSTRAINT_POLL_S / 2 + 1e-9
    harness.clock.now_s += 1.0
    harness.step()
    assert harness.reason(due) is FinishReason.DEADLINE
