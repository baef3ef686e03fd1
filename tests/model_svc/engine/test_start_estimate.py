from model_svc.engine.start_estimate import StartEstimate
from tests.fakes.scheduling import Harness, sequence
from tokenwire.errors import Overloaded
from tokenwire.requests import FinishReason


def test_it_says_nothing_before_it_has_seen_the_queue_move() -> None:
    estimate = StartEstimate()
    assert estimate.wait_s(0.0, 0) == estimate.wait_s(0.0, 100) == 0, "nothing was left waiting"
    estimate.observe(0.0, 50, waiting=False)
    estimate.observe(50.0, 50, waiting=True)
    assert estimate.wait_s(50.0, 100) is None
    estimate.observe(52.0, 40, waiting=True)
    assert estimate.wait_s(52.0, 100) == 5.0
    assert estimate.wait_s(63.0, 100) is None, "too long ago"
    estimate.observe(53.0, 40, waiting=False)
    assert estimate.wait_s(60.0, 100) == 0


def test_what_was_long_ago_counts_less() -> None:
    estimate = StartEstimate()
    estimate.observe(0.0, 0, waiting=True)
    for second in range(1, 20):
        estimate.observe(second, 10, waiting=True)
    for second in range(20, 60):
        estimate.observe(second, 100, waiting=True)
    wait_s = estimate.wait_s(59.0, 1000)
    assert wait_s is not None and 10 <= wait_s < 12


def test_an_idle_engine_is_no_evidence_and_companions_are_not_ahead() -> None:
    harness = Harness(batch=1, max_context_tokens=100)
    harness.add(*(sequence([i, i], max_tokens=60, arrival_s=harness.clock.now_s) for i in range(4)))
    harness.run()
    for idle_s in (3.0, 15.0):
        harness.clock.now_s += idle_s
        now_s = harness.clock.now_s
        pair = [sequence([1], max_tokens=2, arrival_s=now_s, deadline_s=now_s + 0.5) for _ in range(2)]
        harness.add(*pair)
        harness.run()
        assert [harness.reason(each) for each in pair] == [FinishReason.LENGTH] * 2


def busy_harness() -> Harness:
    """One slot; a queue that has been moving at one request of two tokens every 20 steps."""
    harness = Harness(batch=1, max_context_tokens=100)
    harness.add(*(sequence([i, i], max_tokens=20, arrival_s=harness.clock.now_s) for i in range(40)))
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
    assert error.retry_after_s is not None and 2 < error.retry_after_s < 6
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
