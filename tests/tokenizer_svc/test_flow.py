"""Admission credits on the real wire: what is held, what is said of it, and what lets it go."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.live_model_tier import live_model_tier
from tests.fakes.live_tokenizer_tier import TextPeer, live_tokenizer_tier, text_request, tokenizer_over_fake
from tests.fakes.model_tier import FakeModelTier, Frame, fake_model_tier
from tokenwire.errors import Overloaded
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.v1 import common_pb2, tokenizer_pb2


def credit(requests: int, *, tokens: int = 10_000, ttl_ms: int = 60_000) -> common_pb2.AdmissionCredit:
    return common_pb2.AdmissionCredit(requests=requests, tokens=tokens, ttl_ms=ttl_ms)


def said(fake: FakeModelTier) -> list[tuple[int, str, int, int]]:
    """The demand of the last frame up."""
    last = fake.demands[-1] if fake.demands else []
    return sorted((each.priority, each.tenant, each.requests, each.tokens) for each in last)


def test_what_has_no_credit_is_held_told_and_sent_in_order(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True, credit=credit(1)) as (fake, live, peer):
            num_tokens = len(live.ids("hello"))
            for handle, (priority, tenant) in enumerate([(0, "a"), (0, "a"), (0, "b"), (5, "a")], start=1):
                await peer.submit(handle, text_request("hello", priority=priority, tenant=tenant))
            await fake.until(lambda fake: len(said(fake)) == 3)
            assert said(fake) == [(0, "a", 1, num_tokens), (0, "b", 1, num_tokens), (5, "a", 1, num_tokens)]
            assert len(fake.requests) == 1 and live.server.tier.dispatcher.num_held == 3
            assert live.server.tier.dispatcher.oldest_held_s > 0
            assert live.server.replicas[0].credit_requests == 0
            await fake.sessions[0].send(Frame(credit=credit(1)))  # may be older than the first Submit
            await fake.sessions[0].send(Frame(credit=credit(1)))
            assert (await fake.request(1)).request.context.priority == 5
            await fake.sessions[0].send(Frame(credit=credit(0)))
            await fake.sessions[0].send(Frame(credit=credit(9)))
            await fake.request(3)
            await fake.until(lambda fake: said(fake) == [])
            for down in fake.requests:
                await down.end(Terminal(FinishReason.LENGTH, Usage(1, 0, 0)))
            for handle in range(1, 5):
                assert (await peer.end(handle)).reason is FinishReason.LENGTH
            await live.until_idle()
            assert live.server.tier.dispatcher.oldest_held_s == 0
            assert live.server.replicas[0].credit_requests == 7, "nine, of which two went down"

    asyncio.run(main())


def test_prompt_tokens_are_credited_too(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True, credit=credit(100, tokens=1)) as (fake, live, peer):
            await fake.sessions[0].send(Frame(load=common_pb2.Load(queued=1), credit=credit(100, tokens=1)))
            request = text_request()
            request.token_ids.ids.extend([1, 2, 3])
            await asyncio.sleep(0.05)
            await peer.submit(1, request)
            await fake.until(lambda fake: said(fake) == [(0, "", 1, 3)])
            assert not fake.requests
            await fake.sessions[0].send(Frame(load=common_pb2.Load(queued=1), credit=credit(100, tokens=3)))
            await fake.request()
            assert live.server.tier.dispatcher.num_held == 0

    asyncio.run(main())


def test_a_lease_lapses_and_a_held_request_goes_to_whichever_has_room(trained_folder: Path) -> None:
    async def main() -> None:
        async with (
            fake_model_tier(hold=True, credit=credit(5, ttl_ms=1)) as silent,
            fake_model_tier(hold=True, credit=credit(0)) as full,
            live_tokenizer_tier(trained_folder, silent, full) as live,
        ):
            await asyncio.sleep(0.05)
            peer = await TextPeer.open(live)
            await peer.submit(1, text_request("hello"))
            await full.until(lambda fake: len(said(fake)) == 1)
            assert not silent.requests and not full.requests
            assert live.server.tier.metrics.lapsed_credits._value.get() == 5
            await full.sessions[0].send(Frame(credit=credit(1)))
            await full.request()
            assert not silent.requests

    asyncio.run(main())


@pytest.mark.parametrize("setting", ["max_requests", "max_held_requests", "max_queued_requests"])
def test_a_session_alone_may_have_as_many_open_as_its_hello_says(trained_folder: Path, setting: str) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {setting: 3}, hold=True, credit=credit(0)) as (fake, live, peer):
            assert peer.hello.max_requests == 3
            await peer.send(
                submits=[tokenizer_pb2.Submit(handle=handle, request=text_request("hello")) for handle in (1, 2, 3)]
            )
            async with asyncio.timeout(10):
                while live.server.tier.dispatcher.num_held < 3:
                    await asyncio.sleep(0.002)
            await fake.sessions[0].send(Frame(credit=credit(3)))
            for place in range(3):
                received = await fake.request(place)
                await received.end(Terminal(FinishReason.LENGTH))
            assert [(await peer.end(handle)).reason for handle in (1, 2, 3)] == [FinishReason.LENGTH] * 3

    asyncio.run(main())


def test_a_full_held_queue_refuses_with_a_time_to_retry(trained_folder: Path) -> None:
    async def main() -> None:
        settings = {"max_held_requests": 2}
        async with tokenizer_over_fake(trained_folder, settings, hold=True, credit=credit(0)) as (_, live, peer):
            for handle in range(1, 4):
                await peer.submit(handle, text_request("hello"))
            error = (await peer.end(3)).error
            assert isinstance(error, Overloaded) and error.reason == "HELD_QUEUE_FULL" and error.retry_after_s
            await peer.submit(4, text_request("hello", tenant="other"))
            assert isinstance((await peer.end(2)).error, Overloaded), "the last of a tenant with more than its share"
            await peer.cancel(1)
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            await peer.submit(5, text_request("hello", timeout_ms=50))
            assert (await peer.end(5)).reason is FinishReason.DEADLINE
            await peer.cancel(4)
            await peer.end(4)
            await live.until_idle()
            assert live.server.tier.dispatcher.num_held == 0

    asyncio.run(main())


def test_without_credits_nothing_is_held(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            for handle in range(1, 101):
                await peer.submit(handle, text_request("hello"))
            await fake.request(99)
            assert live.server.tier.dispatcher.num_held == 0 and not any(fake.demands)

    asyncio.run(main())


def test_nothing_is_refused_where_the_real_model_tier_has_no_room_for_all(trained_folder: Path) -> None:
    """Ten may wait and two run; two hundred come at once, on two sessions. All are served."""

    async def main() -> None:
        async with live_model_tier(
            model=str(trained_folder), max_batch_size=2, max_queued_requests=10, mock_vocab_size=600, mock_step_ms=2.0
        ) as model:
            target = f"127.0.0.1:{model.port}"
            settings = {"model_targets": target}
            async with (
                live_tokenizer_tier(trained_folder, wait=False, **settings) as one,
                live_tokenizer_tier(trained_folder, wait=False, **settings) as two,
            ):
                await one.until_ready(1)
                await two.until_ready(1)
                peers = [await TextPeer.open(one), await TextPeer.open(two)]
                request = text_request("hello")
                request.options.stop.max_tokens = 3
                submits = [tokenizer_pb2.Submit(handle=handle, request=request) for handle in range(1, 101)]
                for peer in peers:
                    await peer.send(submits=submits)
                for peer in peers:
                    for handle in range(1, 101):
                        terminal = await peer.end(handle)
                        assert terminal.reason is FinishReason.LENGTH, terminal.error
                await one.until_idle()
                await two.until_idle()
                for live in (one, two):
                    assert live.server.tier.metrics.held_seconds._sum.get() > 0.1, (
                        "they were held, many of them for long"
                    )
                    assert live.server.tier.metrics.bounced._value.get() < 20, "most credit is good"

    asyncio.run(main())
