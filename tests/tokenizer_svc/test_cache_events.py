"""Cache events followed over the wire: breaks, gaps, tiers without a cache, and a real engine's own events."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tests.fakes.model_tier import fake_model_tier
from tokenizer_svc import cache_events
from tokenizer_svc.backends import ModelReplica
from tokenizer_svc.cache_events import CacheFollower, event_from_wire
from tokenizer_svc.cache_view import CacheView
from tokenizer_svc.prompt_blocks import PromptBlocks
from tokenwire.cache_events import CacheChange, CacheEvent
from tokenwire.v1 import model_pb2

Event = model_pb2.SubscribeCacheEventsResponse
Blocks = model_pb2.CacheBlocks


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


class PlayedCalls:
    """Subscriptions, each answered with the next list of events and then its end, or silence after the last."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, int]] = []
        self.num_cancelled = 0

    def __call__(self, request: Any) -> "PlayedCalls":
        self.asked.append((request.epoch, request.sequence_number))
        self.events = self.answers.pop(0) if self.answers else None
        return self

    async def read(self) -> Any:
        if self.events is None:
            await asyncio.Event().wait()
        return self.events.pop(0) if self.events else grpc.aio.EOF

    def cancel(self) -> None:
        self.num_cancelled += 1


def test_after_a_break_or_a_gap_it_asks_again_from_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_events, "FIRST_BACKOFF_S", 0.001)

    async def main() -> None:
        calls = PlayedCalls(
            [Event(epoch=7, sequence_number=3, snapshot=Blocks(hashes=[1, 2]))],
            [Event(epoch=7, sequence_number=4, stored=Blocks(hashes=[3])), Event(epoch=7, sequence_number=6)],
            [Event(epoch=7, sequence_number=9, snapshot=Blocks(hashes=[4]), continues=True)],
            [Event(epoch=8, sequence_number=0, snapshot=Blocks())],
        )
        view = CacheView()
        follower = CacheFollower("a:1", view)
        follower.follow(calls)
        await until(lambda: len(calls.asked) == 5)
        assert calls.asked == [(0, 0), (7, 3), (7, 4), (0, 0), (8, 0)]
        assert not len(view)
        await follower.close()
        assert calls.num_cancelled == 5

    asyncio.run(main())


def test_hello_does_not_wait_for_the_pause_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_events, "FIRST_BACKOFF_S", 3600.0)

    async def main() -> None:
        calls = PlayedCalls([], [])
        follower = CacheFollower("a:1", CacheView())
        follower.follow(calls)
        await until(lambda: calls.num_cancelled == 1)
        await asyncio.sleep(0.01)
        assert len(calls.asked) == 1
        follower.follow(calls)
        await until(lambda: calls.num_cancelled == 2)
        await follower.close()

    asyncio.run(main())


def test_an_event_of_a_kind_not_known_changes_the_number_alone() -> None:
    assert event_from_wire(Event(epoch=1, sequence_number=5)) == CacheEvent(1, 5, CacheChange.STORED, ())
    found = event_from_wire(Event(epoch=1, sequence_number=5, removed=Blocks(hashes=[2**64 - 1])))
    assert found == CacheEvent(1, 5, CacheChange.REMOVED, (2**64 - 1,))


def test_a_tier_that_is_restarted_is_followed_again() -> None:
    async def main() -> None:
        async with fake_model_tier(caches=True) as fake:
            replica = ModelReplica(fake.target, "", lambda: None, follow_cache=True)
            replica.start()
            await until(lambda: replica.ready and fake.num_subscribed)
            fake.cache.record([1, 2, 3], [])
            await until(lambda: len(replica.cache) == 3)
            await fake.kill()
            await until(lambda: not replica.ready)
            await fake.start()
            await until(lambda: replica.ready and fake.num_subscribed >= 2)
            assert replica.cache.epoch == fake.epoch == 2 and not len(replica.cache)
            fake.cache.record([4], [])
            await until(lambda: len(replica.cache) == 1)
            await replica.close()

    asyncio.run(main())


def test_a_tier_without_a_cache_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with live_model_tier(prefix_cache="off") as live:
            follower = CacheFollower("a:1", CacheView())
            with caplog.at_level("INFO"):
                follower.follow(live.stub.SubscribeCacheEvents)
                await until(lambda: "not to be had" in caplog.text)
            await follower.close()

    asyncio.run(main())


def test_what_a_real_engine_says_names_the_prompts_it_computed() -> None:
    async def main() -> None:
        async with live_model_tier(prefix_cache="tenant", mock_kv_blocks=16, mock_max_context_tokens=256) as live:
            session = await RawSession.open(live.stub)
            card = session.frames[0].hello.models[0]
            view = CacheView()
            view.connect(session.frames[0].hello.epoch, card.hash_scheme, card.block_size)
            follower = CacheFollower("a:1", view)
            follower.follow(live.stub.SubscribeCacheEvents)
            request = token_request(list(range(100)), max_tokens=2, tenant="t")
            request.cache_salt = "s"
            await session.submit({1: request})

            def cached(tenant: str, salt: str) -> int:
                return PromptBlocks(range(100), tenant, salt).cached_tokens([view])[0]

            await until(lambda: cached("t", "s") == 96)
            assert cached("t", "") == cached("u", "s") == 0
            await session.submit({2: token_request([7] * 250, max_tokens=2)})
            await until(lambda: cached("t", "s") < 96)
            await session.read_until_finished(1, 2)
            session.call.cancel()
            await follower.close()

    asyncio.run(main())
