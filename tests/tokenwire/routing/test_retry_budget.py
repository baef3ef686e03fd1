from hypothesis import given
from hypothesis import strategies as st

from tokenwire.errors import Unavailable
from tokenwire.routing.retry_budget import SHARE, RetryBudget

FAILED = Unavailable("the engine was lost")
GOODBYE = Unavailable("this one stops", reason="SHUTTING_DOWN")


def test_when_all_fail_no_more_is_tried_again_than_the_budget_holds() -> None:
    budget = RetryBudget(10)
    assert sum(budget.take(FAILED) for _ in range(1000)) == 10
    assert not budget.take(FAILED)


def test_those_that_end_well_pay_for_one_in_five() -> None:
    budget = RetryBudget(10)
    while budget.take(FAILED):
        pass
    for _ in range(1000):
        budget.on_success()
    assert sum(budget.take(FAILED) for _ in range(1000)) == 10, "it does not save up for ever"
    retried = 0
    for _ in range(1000):
        budget.on_success()
        retried += budget.take(FAILED)
    assert 199 <= retried <= 200


def test_zero_is_no_retry_at_all_but_after_a_goodbye() -> None:
    budget = RetryBudget(0)
    for _ in range(10):
        budget.on_success()
    assert not budget.take(FAILED)
    assert budget.take(GOODBYE) and budget.left == 0


@given(st.lists(st.sampled_from(["take", "success", "goodbye"]), max_size=200), st.integers(0, 5))
def test_random_histories(calls: list[str], most: int) -> None:
    budget, num_taken, num_good = RetryBudget(most), 0, 0
    for call in calls:
        if call == "success":
            budget.on_success()
            num_good += 1
        elif call == "take":
            num_taken += budget.take(FAILED)
        else:
            assert budget.take(GOODBYE)
        assert 0 <= budget.left <= most
        assert num_taken <= most + num_good * SHARE + 1e-9
