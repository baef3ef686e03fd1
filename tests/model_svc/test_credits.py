import asyncio

import pytest

from model_svc.credits import BASE_TOKENS, Lease, Lessor
from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tokenwire.v1 import common_pb2


def test_room_is_leased_in_proportion_to_what_is_held_back() -> None:
    lessor = Lessor()
    claims = [lessor.open() for _ in range(3)]
    lessor.report(claims[1], 5, 5)
    lessor.report(claims[1], 9, 9 * BASE_TOKENS)
    lessor.report(claims[2], 29, 29 * BASE_TOKENS)
    leases = [lessor.lease(claim, 410, 41_000) for claim in claims]
    assert [each.requests for each in leases] == [10, 100, 300]
    assert [each.tokens for each in leases] == [1000, 10_000, 30_000]
    assert lessor.leased == Lease(410, 41_000), "what all were told last"
    lessor.close(claims[2])
    assert lessor.leased == Lease(110, 11_000)
    assert lessor.lease(claims[1], 11, 11_000) == Lease(10, 10_000)
    lessor.check_integrity()
    lessor.leased = Lease(11, 11_001)
    with pytest.raises(AssertionError, match="is leased to sessions"):
        lessor.check_integrity()


def test_a_full_queue_leases_nothing_and_one_alone_gets_everything() -> None:
    lessor = Lessor()
    only = lessor.open()
    assert lessor.lease(only, 0, 5) == lessor.lease(only, 5, -3) == Lease(0, 0)
    assert lessor.lease(only, 7, 90) == Lease(7, 90)


def test_absurd_demand_leaves_the_others_something() -> None:
    lessor = Lessor()
    modest, absurd = lessor.open(), lessor.open()
    lessor.report(absurd, 1000 * 2**32, 1000 * 2**64)
    lease = lessor.lease(modest, 1024, 1_000_000)
    assert lease.requests >= 1 and lease.tokens >= 100


def test_sessions_are_told_their_room_and_it_follows_demand_and_the_queue() -> None:
    async def main() -> None:
        async with live_model_tier(max_batch_size=1, max_queued_requests=10, max_queued_tokens=1000) as live:
            first = await RawSession.open(live.stub)
            credit = first.frames[0].credit
            assert (credit.requests, credit.tokens, credit.ttl_ms) == (10, 1000, 2000)
            second = await RawSession.open(live.stub)
            assert second.frames[0].credit.requests == 5
            await second.send(demand=[common_pb2.Demand(requests=9, tokens=9 * BASE_TOKENS)])
            frame = await second.read()
            assert (frame.credit.requests, frame.credit.tokens) == (9, 909)
            await first.submit({h: token_request([1] * 10, max_tokens=8000) for h in range(1, 6)})
            async with asyncio.timeout(5):
                while frame.credit.requests != 5:  # four wait
                    frame = await second.read()
            assert frame.credit.tokens == 960 * 10 // 11
            gauge = live.registry.get_sample_value("tokenwire_model_leased_requests")
            assert gauge == live.tier.servicer.leased.requests >= frame.credit.requests

    asyncio.run(main())
