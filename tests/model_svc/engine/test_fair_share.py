"""Shares among tenants: the bound of the virtual token counter, weights, and nothing saved up while idle."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine import fair_share
from model_svc.engine.fair_share import OUTPUT_COST, PROMPT_COST, FairShare
from tests.fakes.scheduling import Harness, sequence

MAX_PROMPT, MAX_OUTPUT = 24, 12


class Served:
    """Service each tenant got: computed prompt tokens when a sequence starts, and each output token."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.tenant_of: dict[int, str] = {}
        self.started: set[int] = set()
        self.total: dict[str, float] = {}

    def add(self, *sequences) -> None:  # type: ignore[no-untyped-def]
        for each in sequences:
            self.tenant_of[each.sequence_id] = each.tenant
        self.harness.add(*sequences)

    def step(self) -> None:
        before = {i: len(tokens) for i, tokens in self.harness.outputs.items()}
        self.harness.step()
        for row in self.harness.runner.batches[-1].rows if self.harness.runner.batches else ():
            each = row.sequence
            if each.sequence_id not in self.started:
                self.started.add(each.sequence_id)
                computed = each.num_prompt_tokens - each.num_cached_tokens
                self._serve(each.tenant, PROMPT_COST * computed)
        for sequence_id, count in before.items():
            made = len(self.harness.outputs[sequence_id]) - count
            self._serve(self.tenant_of[sequence_id], OUTPUT_COST * made)

    def _serve(self, tenant: str, cost: float) -> None:
        self.total[tenant] = self.total.get(tenant, 0.0) + cost


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([1.0, 2.0, 0.5]), st.integers(1, 5), st.integers(8, 40), st.integers(18, 40)
)
def test_two_tenants_that_always_wait_stay_within_the_bound(
    seed: int, weight: float, batch: int, budget: int, blocks: int
) -> None:
    """2·max(w_p·L_input, w_q·M), M being the most tokens that a batch holds; with weights, of service over weight."""
    rng = random.Random(seed)
    harness = Harness(
        batch=batch, budget=budget, num_blocks=blocks, max_context_tokens=40, limits={"tenant_weights": {"b": weight}}
    )
    served = Served(harness)

    def another(tenant: str):  # type: ignore[no-untyped-def]
        small = rng.random() < (0.8 if tenant == "a" else 0.2)  # very different requests
        prompt = [rng.randrange(1000) for _ in range(rng.randint(1, 4) if small else rng.randint(16, MAX_PROMPT))]
        length = rng.randint(1, 3) if small else rng.randint(6, MAX_OUTPUT)
        return sequence(prompt, max_tokens=length, tenant=tenant, arrival_s=harness.clock.now_s)

    served.add(another("a"))
    for _ in range(rng.randint(0, 40)):  # one may have a start
        served.step()
        served.add(*(another("a") for _ in range(batch + 1 - len(harness.scheduler.roster.waiting))))
    served.add(*(another("b") for _ in range(batch + 1)))
    start = dict(served.total)
    most_tokens = blocks * 4
    bound = 2 * max(PROMPT_COST * MAX_PROMPT, OUTPUT_COST * most_tokens) / min(1.0, weight)
    for _ in range(250):
        for tenant in "ab":
            waiting = sum(each.tenant == tenant for each in harness.scheduler.roster.waiting)
            served.add(*(another(tenant) for _ in range(batch + 1 - waiting)))  # more than a step can start
        served.step()
        got_a = served.total.get("a", 0.0) - start.get("a", 0.0)
        got_b = (served.total.get("b", 0.0) - start.get("b", 0.0)) / weight
        assert abs(got_a - got_b) <= bound
    assert served.total["a"] > 200 or served.total["b"] > 200


def test_a_tenant_with_few_requests_does_not_wait_behind_one_with_many() -> None:
    harness = Harness(batch=1)
    flood = [sequence([i], max_tokens=4, tenant="many", arrival_s=100.0) for i in range(20)]
    late = sequence([99], max_tokens=4, tenant="few", arrival_s=105.0)
    harness.add(*flood[:10])
    harness.step()
    harness.add(late, *flood[10:])
    harness.run()
    assert list(harness.ended).index(late.sequence_id) == 1


def test_shares_follow_weights() -> None:
    harness = Harness(batch=2, limits={"tenant_weights": {"gold": 3.0}})
    for tenant in ("gold", "plain"):
        harness.add(*(sequence([7, i], max_tokens=5, tenant=tenant) for i in range(100)))
    harness.run(until=lambda: len(harness.ended) >= 80)
    first = [harness.scheduler.sequences.get(i) for i in list(harness.ended)[:80]]
    assert first == [None] * 80
    gold = sum(each.tenant == "gold" for each in harness.scheduler.roster.waiting)
    plain = sum(each.tenant == "plain" for each in harness.scheduler.roster.waiting)
    assert 55 <= 100 - gold <= 65 and 16 <= 100 - plain <= 24


def test_idle_time_is_not_saved_up() -> None:
    shares = FairShare()
    shares.begin_to_wait("busy", 0, [])
    shares.charge("busy", prompt_tokens=1000)
    shares.begin_to_wait("new", 0, ["busy"])
    assert shares.counter("new") == shares.counter("busy") == 1000 * PROMPT_COST
    shares.charge("new", output_tokens=5)
    shares.stop_waiting("busy", 0)
    shares.stop_waiting("new", 0)
    shares.begin_to_wait("third", 0, [])
    assert shares.counter("third") == shares.counter("new")


def test_service_beyond_a_share_is_remembered_while_away() -> None:
    shares = FairShare()
    shares.begin_to_wait("greedy", 0, [])
    shares.charge("greedy", output_tokens=1000)
    shares.stop_waiting("greedy", 0)
    shares.begin_to_wait("modest", 0, [])
    shares.charge("modest", output_tokens=2000)
    shares.begin_to_wait("greedy", 0, ["modest"])
    assert shares.counter("greedy") == shares.counter("modest")
    shares.charge("greedy", output_tokens=10)
    before = shares.counter("greedy")
    shares.stop_waiting("greedy", 0)
    shares.begin_to_wait("greedy", 0, ["modest"])
    assert shares.counter("greedy") == before


def test_counters_of_idle_tenants_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_share, "MAX_TENANTS", 10)
    harness = Harness(batch=2)
    for index in range(200):
        harness.add(sequence([index], max_tokens=1 + index % 3, tenant=f"t{index}"))
        harness.step()
    harness.run()
    assert len(harness.scheduler.roster.shares._counters) <= 11


def test_the_counters_that_are_dropped_are_the_lowest_of_idle_tenants() -> None:
    shares = FairShare()
    for index in range(5):
        shares.charge(f"t{index}", output_tokens=index + 1)
    shares.forget({"t0"})
    assert [shares.counter(f"t{index}") > 0 for index in range(5)] == [True, False, False, True, True]


def test_who_waits_at_another_priority_does_not_hold_the_lift_down() -> None:
    """A starved tenant at the bottom must not let newcomers catch up with all that others ever got."""
    harness = Harness(batch=1)
    harness.add(sequence([1], tenant="starved", priority=-100, max_tokens=2))
    harness.add(*(sequence([2, i], tenant="a", max_tokens=4) for i in range(60)))
    harness.run(until=lambda: len(harness.ended) >= 30)
    newcomers = [sequence([3, i], tenant="v", max_tokens=4) for i in range(20)]
    harness.add(*newcomers)
    before = len(harness.ended)
    harness.run(until=lambda: len(harness.ended) >= before + 10)
    served = sum(each.sequence_id in harness.ended for each in newcomers)
    assert 4 <= served <= 6


def test_a_thousand_tenants_do_not_slow_every_step_down() -> None:
    """What is looked at per step grows with what may start, not with the square of who waits."""
    harness = Harness(batch=1, max_context_tokens=250, num_blocks=100)
    harness.add(sequence([1], max_tokens=200))
    harness.step()
    harness.scheduler.paused = True
    harness.add(*(sequence([2], tenant=f"t{i}") for i in range(1000)))
    looked = 0
    counter = harness.scheduler.roster.shares.counter

    def counted(tenant: str) -> float:
        nonlocal looked
        looked += 1
        return counter(tenant)

    harness.scheduler.roster.shares.counter = counted  # type: ignore[method-assign]
    harness.scheduler.schedule()
    assert looked == 0
    harness.scheduler.paused = False
    list(harness.scheduler.roster.waiting.in_order())
    assert looked <= 3 * 1000
