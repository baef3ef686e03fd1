"""The prefix cache as numbered events: the log by itself, and over the wire from a real engine process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import grpc
import pytest

from model_svc import cache_events
from model_svc.cache_events import CacheEventLog
from tests.fakes.live_model_tier import LiveTier, RawSession, live_model_tier, token_request
from tokenwire.block_hash import SHARED_SCHEME, block_hashes, cache_root
from tokenwire.cache_events import CacheChange, CacheEvent
from tokenwire.errors import Overloaded
from tokenwire.v1 import model_pb2


async def take(events: AsyncIterator[CacheEvent], count: int) -> list[CacheEvent]:
    async with asyncio.timeout(5):
        return [await anext(events) for _ in range(count)]


def test_a_newcomer_gets_a_snapshot_then_every_event() -> None:
    async def main() -> None:
        log = CacheEventLog()
        log.restart(7)
        log.record([1, 2], [])
        events = log.subscribe()
        (first,) = await take(events, 1)
        assert (first.epoch, first.number, first.change, set(first.hashes)) == (7, 1, CacheChange.SNAPSHOT, {1, 2})
        log.record([3], [1])
        assert await take(events, 2) == [
            CacheEvent(7, 2, CacheChange.REMOVED, (1,)),
            CacheEvent(7, 3, CacheChange.STORED, (3,)),
        ]
        assert log.held == {2, 3}

    asyncio.run(main())


def test_who_comes_back_in_time_gets_what_was_missed_and_otherwise_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_events, "MAX_KEPT_EVENTS", 3)

    async def main() -> None:
        log = CacheEventLog()
        log.restart(7)
        for hashed in range(1, 6):
            log.record([hashed], [])
        for number, expected in ((2, [3, 4, 5]), (4, [5])):
            found = await take(log.subscribe(7, number), len(expected))
            assert [event.number for event in found] == expected
            assert all(event.change is CacheChange.STORED for event in found)
        for epoch, number in ((7, 1), (7, 0), (6, 5), (7, 99)):
            (event,) = await take(log.subscribe(epoch, number), 1)
            assert event.change is CacheChange.SNAPSHOT and event.number == 5 and set(event.hashes) == {1, 2, 3, 4, 5}

    asyncio.run(main())


def test_a_slow_subscriber_is_caught_up_by_a_snapshot_and_a_restart_is_a_new_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_events, "MAX_KEPT_EVENTS", 2)

    async def main() -> None:
        log = CacheEventLog()
        log.restart(7)
        events = log.subscribe()
        await take(events, 1)
        for hashed in range(1, 6):
            log.record([hashed], [])
        (event,) = await take(events, 1)
        assert event.change is CacheChange.SNAPSHOT and event.number == 5
        log.restart(0)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        log.restart(8)
        event = await waiting
        assert (event.epoch, event.number, event.change, event.hashes) == (8, 0, CacheChange.SNAPSHOT, ())
        last = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0)
        log.close()
        assert await last is None

    asyncio.run(main())


def test_a_large_snapshot_comes_in_pieces_and_subscribers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_events, "MAX_SNAPSHOT_HASHES", 4)
    monkeypatch.setattr(cache_events, "MAX_SUBSCRIBERS", 2)

    async def main() -> None:
        log = CacheEventLog()
        log.restart(7)
        log.record(list(range(10)), [])
        events = log.subscribe()
        pieces = await take(events, 3)
        assert [(len(e.hashes), e.number, e.continues) for e in pieces] == [(4, 1, True), (4, 1, True), (2, 1, False)]
        log.record([99], [])
        assert await take(events, 1) == [CacheEvent(7, 2, CacheChange.STORED, (99,))]
        second = log.subscribe()
        await take(second, 1)
        with pytest.raises(Overloaded, match="2 subscribers"):
            await anext(log.subscribe())
        await second.aclose()
        await take(log.subscribe(), 1)

    asyncio.run(main())


class Follower:
    """What a router would know from the events."""

    def __init__(self, live: LiveTier) -> None:
        self.call = live.stub.SubscribeCacheEvents(model_pb2.SubscribeCacheEventsRequest())
        self.held: set[int] = set()
        self.epoch = self.number = 0

    async def until(self, *hashes: int) -> None:
        async with asyncio.timeout(10):
            while not set(hashes) <= self.held:
                await self.read()

    async def read(self) -> str:
        event = await self.call.read()
        kind = event.WhichOneof("event")
        if kind == "snapshot":
            self.held = set(event.snapshot.hashes)
        else:
            assert (event.epoch, event.sequence_number) == (self.epoch, self.number + 1)
            assert kind == "removed" or not self.held & set(event.stored.hashes)
            self.held -= set(event.removed.hashes)
            self.held |= set(event.stored.hashes)
        self.epoch, self.number = event.epoch, event.sequence_number
        return str(kind)


def test_a_router_learns_which_prompts_a_tier_holds_and_when_they_are_gone() -> None:
    async def main() -> None:
        async with live_model_tier(mock_kv_blocks=16, mock_max_context_tokens=256) as live:
            follower = Follower(live)
            session = await RawSession.open(live.stub)
            scheme = session.frames[0].hello.models[0].hash_scheme
            assert scheme == SHARED_SCHEME
            prompt = list(range(100))
            await session.submit({1: token_request(prompt, max_tokens=2)})
            mine = block_hashes(cache_root("", "", scheme), prompt, 16)
            await follower.until(*mine)
            assert len(mine) == 6 and follower.held == set(mine)
            await session.submit({2: token_request([7] * 250, max_tokens=2)})
            async with asyncio.timeout(10):
                while follower.held & set(mine):
                    await follower.read()
            await session.submit({3: token_request(prompt, max_tokens=2), 4: token_request([1], max_tokens=1)})
            await session.read_until_finished(1, 2, 3, 4)
            assert session.finishes[3].usage.cached_tokens == 0

    asyncio.run(main())


def test_cached_tokens_salts_and_tenants_over_the_wire() -> None:
    async def cached(live: LiveTier, **fields: str) -> int:
        session = await RawSession.open(live.stub)
        request = token_request(list(range(40)), max_tokens=1, tenant=fields.get("tenant", ""))
        request.cache_salt = fields.get("cache_salt", "")
        await session.submit({1: request})
        await session.read_until_finished(1)
        session.call.cancel()
        return int(session.finishes[1].usage.cached_tokens)

    async def main() -> None:
        async with live_model_tier() as live:
            assert [await cached(live), await cached(live), await cached(live, tenant="a")] == [0, 32, 32]
            assert [await cached(live, cache_salt="s"), await cached(live, cache_salt="s")] == [0, 32]
        async with live_model_tier(prefix_cache="tenant") as live:
            assert [await cached(live, tenant="a"), await cached(live, tenant="b")] == [0, 0]
            assert await cached(live, tenant="a") == 32
        async with live_model_tier(prefix_cache="off") as live:
            assert [await cached(live), await cached(live)] == [0, 0]
            with pytest.raises(grpc.aio.AioRpcError, match="prefix cache is off") as caught:
                await live.stub.SubscribeCacheEvents(model_pb2.SubscribeCacheEventsRequest()).read()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(main())


def test_choices_share_their_prompt_even_with_the_cache_off() -> None:
    async def main() -> None:
        async with live_model_tier(prefix_cache="off") as live:
            session = await RawSession.open(live.stub)
            request = token_request(list(range(40)), max_tokens=1)
            request.options.num_choices = 3
            await session.submit({1: request})
            await session.read_until_finished(1, 2, 3)
            assert sorted(finish.usage.cached_tokens for finish in session.finishes.values()) == [0, 32, 32]

    asyncio.run(main())


def test_a_lost_engine_is_a_new_epoch_with_an_empty_cache_and_a_drain_ends_the_stream() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            follower = Follower(live)
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request(list(range(40)), max_tokens=1)})
            await session.read_until_finished(1)
            while not follower.held:
                await follower.read()
            epoch = follower.epoch
            os.kill(live.tier.engine.pid or 0, signal.SIGKILL)
            async with asyncio.timeout(20):
                assert await follower.read() == "snapshot"
            assert follower.epoch != epoch and not follower.held
            draining = asyncio.ensure_future(live.tier.drain())
            async with asyncio.timeout(1.5):  # the limit for what runs is two seconds: nothing waits for it
                assert await follower.call.read() is grpc.aio.EOF
            await draining

    asyncio.run(main())
