import pytest

from tests.fakes.scheduling import Harness, sequence


def started(harness: Harness, *sequences) -> list[bool]:  # type: ignore[no-untyped-def]
    return [each.first_scheduled_s is not None for each in sequences]


def test_off_by_default_everything_starts_at_once() -> None:
    harness, one = Harness(), sequence([1, 2])
    harness.add(one)
    assert harness.scheduler.idle_s() == 0
    harness.step()
    assert started(harness, one) == [True]


def test_a_time_holds_new_sequences_until_the_oldest_has_waited_so_long_and_never_a_decode() -> None:
    harness = Harness(limits={"window_s": 0.05})
    first = sequence([1, 2], max_tokens=40, arrival_s=100.0)
    harness.add(first)
    assert harness.scheduler.idle_s() == pytest.approx(0.05)
    while harness.clock.now_s < 100.0499:
        harness.step()
        assert started(harness, first) == [harness.clock.now_s > 100.0599]
    harness.step()
    assert started(harness, first) == [True]
    start = harness.clock.now_s
    second, third = sequence([3], max_tokens=2, arrival_s=start), sequence([4], max_tokens=2, arrival_s=start + 0.02)
    harness.add(second)
    for _ in range(3):
        made = len(harness.outputs[first.sequence_id])
        harness.step()
        assert len(harness.outputs[first.sequence_id]) == made + 1
    harness.add(third)
    assert started(harness, second, third) == [False, False]
    harness.run(until=lambda: second.first_scheduled_s is not None)
    assert second.first_scheduled_s == third.first_scheduled_s
    assert second.first_scheduled_s - start == pytest.approx(0.05, abs=0.011)


def test_a_count_opens_it_whichever_comes_first() -> None:
    harness = Harness(limits={"window_s": 10.0, "window_requests": 3})
    waiting = [sequence([i], arrival_s=100.0) for i in range(3)]
    harness.add(*waiting[:2])
    harness.step()
    assert started(harness, *waiting) == [False] * 3
    harness.add(waiting[2])
    assert harness.scheduler.idle_s() == 0
    harness.step()
    assert started(harness, *waiting) == [True] * 3


def test_a_count_alone_does_not_hold_back_when_nothing_runs() -> None:
    harness = Harness(limits={"window_requests": 3})
    first, second, third = sequence([1], max_tokens=5), sequence([2]), sequence([3])
    harness.add(first)
    harness.step()
    assert started(harness, first) == [True]
    harness.add(second)
    for _ in range(3):
        harness.step()
    assert started(harness, second) == [False]
    harness.add(third)
    harness.run()
    assert started(harness, second, third) == [True, True]
