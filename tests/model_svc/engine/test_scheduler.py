from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.events import Ended
from model_svc.engine.scheduler import Limits, Scheduler
from model_svc.engine.sequence import Sequence
from tests.fakes.runner import FakeRunner, next_token, runner_info
from tokenwire.errors import FailedPrecondition, Internal
from tokenwire.requests import CancelReason, FinishReason
from tokenwire.sampling import NEUTRAL, StopParams

IDS = count(1)
GREEDY = replace(NEUTRAL, seed=0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sequence(
    prompt: list[int],
    *,
    max_tokens: int = 8,
    stop: tuple[int, ...] = (),
    priority: int = 0,
    arrival_s: float = 100.0,
    deadline_s: float | None = None,
) -> Sequence:
    return Sequence(
        sequence_id=next(IDS),
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        sampling=GREEDY,
        stop=StopParams(max_tokens, stop),
        priority=priority,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
    )


def expected_output(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Harness:
    """A scheduler with the fake runner under it; checks integrity after every step."""

    def __init__(self, *, batch: int = 8, budget: int = 32, **info: int) -> None:
        self.clock = Clock()
        self.runner = FakeRunner(runner_info(**info))  # type: ignore[arg-type]
        self.limits = Limits(batch, budget)
        self.scheduler = Scheduler(self.runner.info, self.limits, self.clock)
        self.outputs: dict[int, list[int]] = {}
        self.ended: dict[int, Ended] = {}

    def add(self, *sequences: Sequence) -> None:
        for added in sequences:
            self.outputs[added.sequence_id] = []
            self.scheduler.add(added)

    def step(self) -> None:
        batch = self.scheduler.schedule()
        self.scheduler.check_integrity()
        assert batch.num_tokens <= self.limits.max_step_tokens
        assert len(batch.rows) <= self.limits.max_batch_size
        assert len({row.sequence.sequence_id for row in batch.rows}) == len(batch.rows)
        assert all(row.num_new_tokens >= 1 for row in batch.rows)
        if batch.rows:
            new = self.scheduler.update(batch, self.runner.run(batch))
            for sequence_id, token_id in zip(new.sequence_ids, new.token_ids, strict=True):
                assert sequence_id not in self.ended
                self.outputs[sequence_id].append(token_id)
        self.scheduler.check_integrity()
        for ended in self.scheduler.take_ended():
            assert ended.sequence_id not in self.ended, "a second terminal event"
            self.ended[ended.sequence_id] = ended
        self.clock.now_s += 0.01

    def run(self, until: Callable[[], bool] | None = None, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if until() if until else not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("no end in sight")

    def reason(self, of: Sequence) -> FinishReason:
        return self.ended[of.sequence_id].terminal.reason


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
    assert harness.scheduler.num_preemptions > 0
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


ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 25), st.integers(-2, 2), st.integers(0, 3)),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
    st.tuples(st.just("step"), st.integers(1, 6)),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ACTIONS, max_size=40),
    st.integers(1, 6),
    st.integers(1, 24),
    st.integers(16, 30),
)
def test_any_history_ends_every_sequence_once_with_the_right_tokens(
    actions: list[tuple], batch: int, budget: int, blocks: int
) -> None:
    harness = Harness(batch=batch, budget=budget, num_blocks=blocks, max_context_tokens=60)
    added: list[tuple[Sequence, list[int], int]] = []
    for name, *values in actions:
        if name == "add":
            length, max_tokens, priority, deadline = values
            prompt = [(length * 7 + i) % 1000 for i in range(length)]
            deadline_s = harness.clock.now_s + 0.2 * deadline if deadline else None
            new = sequence(
                prompt, max_tokens=max_tokens, priority=priority, arrival_s=harness.clock.now_s, deadline_s=deadline_s
            )
            added.append((new, prompt, max_tokens))
            harness.add(new)
        elif name == "abort" and added:
            harness.scheduler.abort(added[values[0] % len(added)][0].sequence_id, CancelReason.CLIENT)
        elif name == "step":
            for _ in range(values[0]):
                harness.step()
    harness.run()
    assert set(harness.ended) == {each.sequence_id for each, _, _ in added}
    assert harness.scheduler.kv.pool.num_used == 0
    for each, prompt, max_tokens in added:
        output = harness.outputs[each.sequence_id]
        assert output == expected_output(prompt, len(output))
        if harness.reason(each) is FinishReason.LENGTH:
            assert len(output) == max_tokens
