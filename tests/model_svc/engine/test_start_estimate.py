import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.scheduler import Scheduler
from model_svc.engine.sequence import Sequence
from model_svc.engine.start_estimate import StartEstimate
from tests.fakes.scheduling import Harness, expected_output, sequence
from tokenwire.errors import Overloaded
from tokenwire.requests import FinishReason


def seen(steps_per_s: int, num_outputs: list[int], num_slots: int = 2) -> StartEstimate:
    """What two seconds at such a speed show, until second 2."""
    estimate = StartEstimate(num_slots)
    for step in range(2 * steps_per_s + 1):
        estimate.on_step(step / steps_per_s, busy=step > 0)
    for each in num_outputs:
        estimate.on_end(2.0, each)
    return estimate


def test_it_counts_what_is_left_to_those_ahead_in_slots_at_the_best_speed_seen() -> None:
    estimate = seen(8, [20, 40, 400] * 3)
    assert estimate.least_wait_s(2.0, [100] * 10) == (10 * 20 / 2 - 2 * 20 - 1) / 8, "half the median of each"
    assert estimate.least_wait_s(2.0, [10] * 20) == (20 * 10 / 2 - 2 * 20 - 1) / 8, "what each may make at most"
    assert estimate.least_wait_s(2.0, [100] * 4) == 0, "they may all be running when it starts"
    for step in range(1, 5):
        estimate.on_step(2.0 + step, busy=True)
    assert estimate.least_wait_s(6.0, [100] * 10) == (10 * 20 / 2 - 2 * 20 - 1) / 8, "slower steps do not count"


def test_what_was_seen_ages_by_the_clock() -> None:
    estimate = seen(8, [20] * 8)
    assert estimate.least_wait_s(11.0, [100] * 20) > 0
    assert estimate.least_wait_s(12.1, [100] * 20) == 0
    assert StartEstimate(1).least_wait_s(0.0, [100] * 20) == 0
    assert seen(8, [20] * 7).least_wait_s(2.0, [100] * 20) == 0, "too few to tell"


def test_time_without_work_is_not_slowness() -> None:
    harness = Harness(batch=1, max_context_tokens=100)
    fill(harness, num=40, max_tokens=20)
    harness.run()
    harness.clock.now_s += 25.0
    fill(harness, num=8, max_tokens=20)
    late = sequence([1], arrival_s=harness.clock.now_s, deadline_s=harness.clock.now_s + 3.0)
    harness.add(late)
    harness.run()
    assert harness.reason(late) is FinishReason.LENGTH


def fill(harness: Harness, num: int, max_tokens: int) -> None:
    harness.add(*(sequence([i, i], max_tokens=max_tokens, arrival_s=harness.clock.now_s) for i in range(num)))


def busy_harness() -> Harness:
    """One slot; of 40 requests of 20 steps of 10 ms each 30 still wait."""
    harness = Harness(batch=1, max_context_tokens=100)
    fill(harness, num=40, max_tokens=20)
    for _ in range(200):
        harness.step()
    return harness


def test_a_request_that_cannot_start_in_time_is_refused_at_once_with_a_time_to_retry() -> None:
    harness = busy_harness()
    hopeless = sequence([1], arrival_s=harness.clock.now_s, deadline_s=harness.clock.now_s + 2.0)
    feasible = sequence([1], arrival_s=harness.clock.now_s, deadline_s=harness.clock.now_s + 30.0)
    harness.add(hopeless, feasible)
    harness.step()
    error = harness.ended[hopeless.sequence_id].terminal.error
    assert isinstance(error, Overloaded) and error.reason == "DEADLINE_UNREACHABLE"
    assert error.retry_after_s is not None and 0.5 < error.retry_after_s < 4
    assert feasible.sequence_id not in harness.ended
    harness.run()
    assert harness.reason(feasible) is FinishReason.LENGTH


def test_who_goes_before_the_queue_is_not_refused() -> None:
    harness = busy_harness()
    now_s = harness.clock.now_s
    urgent = sequence([1], arrival_s=now_s, deadline_s=now_s + 2.0, priority=1)
    other = sequence([1], arrival_s=now_s, deadline_s=now_s + 2.0, tenant="another")
    harness.add(urgent, other)
    harness.run()
    assert harness.reason(urgent) is FinishReason.LENGTH and harness.reason(other) is FinishReason.LENGTH


def test_those_that_leave_by_their_own_deadline_before_are_not_ahead() -> None:
    harness = Harness(batch=1, max_context_tokens=100)
    fill(harness, num=10, max_tokens=20)
    for _ in range(180):
        harness.step()
    now_s = harness.clock.now_s
    deadlines = [now_s + 0.5 + 0.01 * index for index in range(50)]
    leaving = [sequence([1], max_tokens=90, arrival_s=now_s, deadline_s=deadline_s) for deadline_s in deadlines]
    last = sequence([1], max_tokens=2, arrival_s=now_s, deadline_s=now_s + 1.5)
    harness.add(*leaving, last)
    harness.run()
    assert {harness.reason(each) for each in leaving} == {FinishReason.DEADLINE}, "nobody was refused"
    assert harness.reason(last) is FinishReason.LENGTH


@pytest.mark.parametrize(("deadline_s", "refused"), [(1.0, True), (3.2, False)])
def test_all_choices_of_a_request_are_let_in_or_none(deadline_s: float, refused: bool) -> None:
    """The queue takes at least 2.8 s; with the choices' own siblings it would soon be more."""
    harness = busy_harness()
    now_s = harness.clock.now_s
    first = sequence([7], max_tokens=30, arrival_s=now_s, deadline_s=now_s + deadline_s)
    others = [
        sequence([7], max_tokens=30, arrival_s=now_s, deadline_s=now_s + deadline_s, choice=choice)
        for choice in range(1, 16)
    ]
    for each in others:
        each.first_choice_id = first.sequence_id
    harness.add(first, *others)
    harness.step()
    assert [each.sequence_id in harness.ended for each in (first, *others)] == [refused] * 16


arrivals = st.lists(
    st.tuples(
        st.integers(1, 12),  # requests that come together
        st.integers(1, 25),  # prompt
        st.integers(1, 40),  # max_tokens
        st.sampled_from([math.inf, math.inf, 1.0, 3.0]),  # seconds left
        st.sampled_from([0, 0, 0, -1, 1]),  # priority
        st.sampled_from([0, 0, 0, 1]),  # tenant
        st.integers(0, 120),  # steps until the next
        st.booleans(),  # prompts in common
    ),
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(arrivals, st.integers(1, 4), st.sampled_from([6, 32]), st.sampled_from([16, 400]), st.booleans())
def test_nobody_starts_before_the_least_wait_that_was_seen_for_it(
    load: list[tuple], batch: int, budget: int, blocks: int, overlap: bool
) -> None:
    """Any load at a steady speed, everyone let in: whoever is refused would not have started in time.

    Prompts in common, preemption and chunked prefill included. The margin is one step.
    """
    harness = Harness(batch=batch, budget=budget, num_blocks=blocks, max_context_tokens=60, overlap=overlap)
    waits = watch(harness.scheduler)
    fill(harness, num=20 * batch, max_tokens=20)
    for _ in range(200):
        harness.step()
    for num, length, max_tokens, left_s, priority, tenant, num_steps, common in load:
        now_s = harness.clock.now_s
        for index in range(num):
            prompt = [0 if common else index] * length
            fields = {"arrival_s": now_s, "deadline_s": now_s + left_s, "priority": priority, "tenant": f"t{tenant}"}
            harness.add(sequence(prompt, max_tokens=max_tokens, **fields))  # type: ignore[arg-type]
        for _ in range(num_steps):
            harness.step()
    harness.run(max_steps=30_000)
    check(waits)


def watch(scheduler: Scheduler) -> list[tuple[Sequence, float]]:
    """Each new sequence and when it would start at the best; it is let in whatever that is."""
    waits: list[tuple[Sequence, float]] = []
    reachable = scheduler._reachable
    least_wait_s = reachable.least_wait_s

    def record(new: Sequence) -> float:
        waits.append((new, scheduler.clock() + least_wait_s(new)))
        return 0.0

    reachable.least_wait_s = record  # type: ignore[method-assign]
    return waits


def check(waits: list[tuple[Sequence, float]]) -> None:
    for each, earliest_s in waits:
        assert each.first_scheduled_s is None or each.first_scheduled_s > earliest_s - 0.011


@pytest.mark.parametrize("seed", range(3))
def test_it_does_refuse_under_steady_overload_with_outputs_of_any_length(seed: int) -> None:
    """Outputs that stop long before their limit, some at once."""
    harness = Harness(batch=4, max_context_tokens=100)
    waits = watch(harness.scheduler)
    lengths = random.Random(seed)
    for number in range(60):
        now_s = harness.clock.now_s
        for index in range(6):
            prompt = [number, index]
            stop = expected_output(prompt, 40)[min(39, int(lengths.expovariate(1 / 15)))]
            harness.add(sequence(prompt, max_tokens=90, stop=(stop,), arrival_s=now_s, tenant="a"))
        harness.add(sequence([number, 99], max_tokens=4, arrival_s=now_s, deadline_s=now_s + 1.0, tenant="a"))
        for _ in range(10):
            harness.step()
    harness.run(max_steps=9000)
    check(waits)
    refused = [each for each, earliest_s in waits if earliest_s >= (each.deadline_s or 0.0)]
    assert len(refused) > 10 and all(each.first_scheduled_s is None for each in refused)
