"""The breaker as a state machine: by cases, and by random histories against what must hold."""

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.replica import FakeClock
from tokenwire.routing.breaker import FIRST_PAUSE_S, MAX_PAUSE_S, PROBE_TIMEOUT_S, Breaker, BreakerState


def opened(clock: FakeClock) -> Breaker:
    breaker = Breaker(3, clock=clock)
    for _ in range(3):
        breaker.on_failure("INTERNAL")
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_one_success_between_them_does_not() -> None:
    times: list[int] = []
    breaker = Breaker(3, on_open=lambda: times.append(1), clock=FakeClock())
    for failure in "aab":
        breaker.on_failure(failure)
        if failure == "a" and breaker.admits:
            breaker.on_success()
    assert breaker.admits and not times and not breaker.problem()
    breaker.on_failure("c")
    breaker.on_failure("d")
    assert not breaker.admits and len(times) == 1
    assert "passed over for 1.0 s more after failures, the last one: d" in breaker.problem()


def test_after_the_pause_one_request_tries_and_its_tokens_close_it() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    clock.now_s += FIRST_PAUSE_S - 0.01
    assert not breaker.admits
    clock.now_s += 0.01
    assert breaker.admits and breaker.state is BreakerState.OPEN, "nobody has tried yet"
    breaker.on_submit()
    assert breaker.state is BreakerState.HALF_OPEN and not breaker.admits, "one at a time"
    breaker.on_progress()
    assert breaker.state is BreakerState.CLOSED and breaker.admits


def test_each_failed_trial_doubles_the_pause_up_to_a_limit_and_a_good_end_resets_it() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    pauses = [breaker.wait_s]
    for _ in range(8):
        clock.now_s += breaker.wait_s
        breaker.on_submit()
        breaker.on_failure("again")
        pauses.append(breaker.wait_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60] and max(pauses) == MAX_PAUSE_S
    clock.now_s += breaker.wait_s
    breaker.on_submit()
    breaker.on_progress()
    for _ in range(3):
        breaker.on_failure("tokens, then a failure")
    assert breaker.wait_s == MAX_PAUSE_S, "first tokens alone do not make it good"
    clock.now_s += breaker.wait_s
    breaker.on_submit()
    breaker.on_success()
    for _ in range(3):
        breaker.on_failure("much later")
    assert breaker.wait_s == FIRST_PAUSE_S


def test_a_trial_that_says_nothing_does_not_keep_others_away_for_ever() -> None:
    clock = FakeClock()
    breaker = opened(clock)
    clock.now_s += FIRST_PAUSE_S
    breaker.on_submit()
    clock.now_s += PROBE_TIMEOUT_S
    assert breaker.admits
    breaker.on_submit()
    assert not breaker.admits


def test_zero_turns_it_off() -> None:
    breaker = Breaker(0)
    for _ in range(100):
        breaker.on_failure("")
    assert breaker.admits and breaker.state is BreakerState.CLOSED


CALLS = st.one_of(st.sampled_from(["submit", "progress", "success", "failure"]), st.floats(0.0, 100.0, allow_nan=False))


@given(st.lists(CALLS, max_size=60), st.integers(1, 4))
def test_random_histories(calls: list[str | float], max_failures: int) -> None:
    clock = FakeClock()
    breaker = Breaker(max_failures, clock=clock)
    in_a_row = 0
    for call in calls:
        before = breaker.state
        if isinstance(call, float):
            clock.now_s += call
        elif call == "failure":
            breaker.on_failure("bad")
            in_a_row += before is BreakerState.CLOSED
            if before is BreakerState.HALF_OPEN:
                assert breaker.state is BreakerState.OPEN
        else:
            getattr(breaker, f"on_{call}")()
            if call != "submit":
                assert breaker.state is BreakerState.CLOSED
        if call == "success" or breaker.state is not BreakerState.CLOSED or before is not BreakerState.CLOSED:
            in_a_row = 0
        assert in_a_row < max_failures
        assert (breaker.wait_s == 0) == breaker.admits
        assert breaker.wait_s <= MAX_PAUSE_S
        assert bool(breaker.problem()) == (breaker.state is not BreakerState.CLOSED)
        if before is BreakerState.CLOSED and breaker.state is BreakerState.OPEN:
            assert not breaker.admits
