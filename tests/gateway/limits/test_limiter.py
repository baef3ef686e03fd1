"""Limits of tenants by a clock that the test moves, and the table that workers share."""

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.http.limit_headers import duration, headers_of
from gateway.limits.limiter import FREE, STANDING, Estimate, Limiter, Standing
from gateway.limits.table import SETS, WAYS, UsageTable
from tests.fakes.replica import FakeClock
from tokenwire.errors import InvalidRequest, Overloaded
from tokenwire.identity_file import TenantLimits


def limiter_of(
    clock: Callable[[], float], defaults: TenantLimits, own: dict[str, TenantLimits] | None = None
) -> Limiter:
    return Limiter(UsageTable(), defaults, lambda: own or {}, lambda _: None, clock=clock)


def refused(limiter: Limiter, tenant: str, *estimates: Estimate, streams: int = 1) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        limiter.admit(tenant, estimates or [Estimate()], streams)
    return caught.value


def test_a_second_of_requests_at_once_then_at_the_rate() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock, TenantLimits(4.0, 0, 0))
    for _ in range(4):
        limiter.admit("a", [Estimate()])[0].settle(0, 0)
    error = refused(limiter, "a")
    assert error.reason == "TENANT_REQUESTS_PER_S" and error.retry_after_s == pytest.approx(0.25)
    limiter.admit("b", [Estimate()])
    clock.now_s += 0.25
    limiter.admit("a", [Estimate()])
    refused(limiter, "a")


def test_over_time_no_more_than_the_rate_begins() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock, TenantLimits(5.0, 0, 0))
    rng = random.Random(1)
    begun = 0
    for _ in range(3000):
        clock.now_s += rng.expovariate(20)
        try:
            limiter.admit("a", [Estimate()])
            begun += 1
        except Overloaded:
            pass
    assert begun == pytest.approx(5 * (clock.now_s - 1000) + 5, rel=0.02)


def test_tokens_are_charged_by_estimate_and_put_right_at_the_end() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock, TenantLimits(0, 6000, 0))
    (lease,) = limiter.admit("a", [Estimate(1000, 5000)])
    error = refused(limiter, "a", Estimate(1, 9))
    assert error.reason == "TENANT_TOKENS_PER_MIN" and error.retry_after_s == pytest.approx(0.1)
    lease.settle(900, 100)
    lease.settle(900, 100)
    limiter.admit("a", [Estimate(0, 5000)])[0].settle(None, 5000)
    refused(limiter, "a", Estimate(0, 1))
    clock.now_s += 60
    limiter.admit("a", [Estimate(0, 10)])[0].settle(0, 12_000)
    error = refused(limiter, "a", Estimate(0, 1))
    assert error.retry_after_s == pytest.approx(60, abs=0.1)


def test_what_is_larger_than_its_bucket_waits_until_that_is_full() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock, TenantLimits(2.0, 600, 0))
    limiter.admit("a", [Estimate()])
    assert refused(limiter, "a", *[Estimate()] * 8).retry_after_s == pytest.approx(0.5)
    clock.now_s += 0.5
    limiter.admit("a", [Estimate(0, 10_000)] * 8)
    assert refused(limiter, "a").retry_after_s == pytest.approx(3.5)


def test_streams_are_counted_while_they_are_open() -> None:
    limiter = limiter_of(FakeClock(), TenantLimits(0, 0, 4))
    leases = limiter.admit("a", [Estimate()] * 2, 2)
    error = refused(limiter, "a")
    assert error.reason == "TENANT_MAX_STREAMS" and error.retry_after_s == 1.0
    leases[0].settle(0, 0)
    leases[0].settle(0, 0)
    (last,) = limiter.admit("a", [Estimate()], 2)
    refused(limiter, "a")
    last.give_back()
    leases[1].give_back()
    limiter.admit("a", [Estimate()] * 4)
    with pytest.raises(InvalidRequest, match="may have 4 at once"):
        limiter.admit("b", [Estimate()] * 5)


def test_what_did_not_begin_is_given_back() -> None:
    limiter = limiter_of(FakeClock(), TenantLimits(1.0, 600, 1))
    for _ in range(5):
        limiter.admit("a", [Estimate(100, 500)])[0].give_back()
    limiter.admit("a", [Estimate(100, 500)])


def test_a_tenants_own_limits_go_before_the_defaults() -> None:
    own = {"a": TenantLimits(requests_per_s=2.0), "free": TenantLimits(0, 0, 0)}
    limiter = limiter_of(FakeClock(), TenantLimits(1.0, 60, 0), own)
    assert limiter.admit("free", [Estimate(10**9)]) == [FREE]
    limiter.admit("a", [Estimate()])
    limiter.admit("a", [Estimate()])
    refused(limiter, "a")
    limiter.admit("b", [Estimate()])
    refused(limiter, "b")


def test_how_a_tenant_stands_is_told_in_openais_words() -> None:
    limiter = limiter_of(FakeClock(), TenantLimits(5.0, 6000, 0))
    standing = Standing()
    token = STANDING.set(standing)
    try:
        limiter.admit("a", [Estimate(100, 500)])
    finally:
        STANDING.reset(token)
    assert dict(headers_of(standing)) == {
        b"x-ratelimit-limit-requests": b"5", b"x-ratelimit-remaining-requests": b"4",
        b"x-ratelimit-reset-requests": b"200ms", b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"5400", b"x-ratelimit-reset-tokens": b"6s",
    }  # fmt: skip
    assert [duration(s) for s in (0, 0.02, 1.5, 59.9999, 360, 3725)] == ["0ms", "20ms", "1.5s", "60s", "6m0s", "1h2m5s"]


def test_hostile_names_take_no_memory_and_share_what_is_left() -> None:
    """More busy tenants than places: those who find none are held to one limit together; idle ones leave theirs."""
    clock = FakeClock()
    limiter = limiter_of(clock, TenantLimits(1.0, 0, 0))
    begun = 0
    for number in range(4 * SETS * WAYS):
        try:
            limiter.admit(f"name-{number}", [Estimate()])[0].settle(0, 0)
            begun += 1
        except Overloaded:
            pass
    assert SETS * WAYS * 0.95 < begun <= SETS * WAYS + 1
    clock.now_s += 2
    limiter.admit("late", [Estimate()])
    refused(limiter, "late")


def _use(path: Path, worker: int, count: int) -> int:
    table = UsageTable(path, worker=worker, num_workers=3)
    limiter = Limiter(table, TenantLimits(0, 600, 0), dict, lambda _: None)
    begun = 0
    for _ in range(count):
        try:
            limiter.admit("a", [Estimate(1)])[0].settle(1, 0)
            begun += 1
        except Overloaded:
            pass
    table.close()
    return begun


def test_workers_hold_a_tenant_to_one_limit_together(tmp_path: Path) -> None:
    """600 tokens a minute, three processes that try 500 each: what begins is the bucket, and what time brings."""
    path = tmp_path / "table"
    began_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(_use, [(path, worker, 500) for worker in range(3)])
    assert 600 <= sum(found) <= 600 + 10 * (time.monotonic() - began_s) + 1


def test_a_worker_that_is_started_again_forgets_its_own_streams_alone(tmp_path: Path) -> None:
    path = tmp_path / "table"
    tables = [UsageTable(path, worker=number, num_workers=2) for number in range(2)]
    limiters = [
        Limiter(table, TenantLimits(0, 0, 4), dict, lambda _: None, clock=FakeClock()) for table in tables
    ]  # fmt: skip
    limiters[0].admit("a", [Estimate()] * 3)
    limiters[1].admit("a", [Estimate()])
    refused(limiters[1], "a")
    tables[0].close()
    again = UsageTable(path, worker=0, num_workers=2)
    limiters[1].admit("a", [Estimate()] * 3)
    refused(Limiter(again, TenantLimits(0, 0, 4), dict, lambda _: None, clock=FakeClock()), "a")
    again.close()
    tables[1].close()
