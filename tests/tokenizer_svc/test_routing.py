"""The whole tokenizer tier over fake model tiers: prefix routing, ejection, and replicas that come and go."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import TextPeer, live_tokenizer_tier, text_request
from tests.fakes.model_tier import FakeModelTier, Frame, fake_model_tier
from tokenwire.errors import Unavailable
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.routing import breaker
from tokenwire.v1 import common_pb2

DONE = Terminal(FinishReason.LENGTH, Usage(1, 0, 1))
PROMPT = "a prompt that is long enough to fill several blocks of four tokens each, whatever the tokenizer makes of it"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def generate(peer: TextPeer, handle: int, text: str = PROMPT, **context: Any) -> Terminal:
    await peer.submit(handle, text_request(text, **context))
    return await peer.end(handle)


def test_the_second_equal_prompt_goes_where_the_first_one_is_cached(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(caches=True) as first, fake_model_tier(caches=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second, routing_policy="prefix-cache") as live:
                peer = await TextPeer.open(live)
                await generate(peer, 1)
                holder, other = (first, second) if first.requests else (second, first)
                replica = next(each for each in live.server.replicas if each.target == holder.target)
                await until(lambda: len(replica.cache) == len(live.ids(PROMPT)) // 4 > 0)
                for handle in range(2, 22):
                    await generate(peer, handle)
                assert len(holder.requests) == 21 and not other.requests
                assert live.metric("picks_total", reason="prefix") == 20
                cached = len(live.ids(PROMPT)) // 4 * 4
                assert live.metric("expected_cached_tokens_total") == 20 * cached
                await until(lambda: live.metric("known_cached_blocks") == cached // 4)
                holder.cache.restart(2)
                await until(lambda: not len(replica.cache))

    asyncio.run(main())


def test_a_busy_holder_is_passed_over_and_what_is_held_is_learnt_from_a_tier_that_was_there_before(
    trained_folder: Path,
) -> None:
    async def main() -> None:
        async with fake_model_tier(caches=True) as first, fake_model_tier(caches=True) as second:
            async with live_tokenizer_tier(trained_folder, first, routing_policy="prefix-cache") as live:
                await generate(await TextPeer.open(live), 1)
            async with live_tokenizer_tier(trained_folder, first, second, routing_policy="prefix-cache") as live:
                peer = await TextPeer.open(live)
                await until(lambda: len(live.server.replicas[0].cache))
                await generate(peer, 1)
                assert len(first.requests) == 2 and not second.requests, "told by a snapshot"
                await first.sessions[-1].send(Frame(load=common_pb2.Load(running=30, max_batch_size=10)))
                await until(lambda: live.server.replicas[0].load > 1)
                await generate(peer, 2)
                assert len(second.requests) == 1
                assert live.metric("picks_total", reason="prefix_busy") == 1

    asyncio.run(main())


def test_cache_events_are_asked_for_only_where_the_policy_looks_at_them(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(caches=True) as fake, fake_model_tier() as without:
            for policy in ("least-load", "power-of-two", "session-affinity"):
                async with live_tokenizer_tier(trained_folder, fake, without, routing_policy=policy) as live:
                    assert (await generate(await TextPeer.open(live), 1)).reason is FinishReason.LENGTH
            assert not fake.num_subscribed
            async with live_tokenizer_tier(trained_folder, fake, without, routing_policy="prefix-cache") as live:
                await until(lambda: fake.num_subscribed)
                assert (await generate(await TextPeer.open(live), 1)).reason is FinishReason.LENGTH
            assert not without.num_subscribed

    asyncio.run(main())


def test_a_tenant_keeps_its_model_tier_while_it_is_there(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier() as first, fake_model_tier() as second:
            async with live_tokenizer_tier(trained_folder, first, second, routing_policy="session-affinity") as live:
                peer = await TextPeer.open(live)
                for handle in range(1, 11):
                    await generate(peer, handle, tenant="t")
                assert sorted([len(first.requests), len(second.requests)]) == [0, 10]
                own, other = (first, second) if first.requests else (second, first)
                await own.kill()
                await live.until_ready(1)
                await generate(peer, 11, tenant="t")
                assert len(other.requests) == 1
                await own.start()
                await live.until_ready(2)
                await generate(peer, 12, tenant="t")
                assert len(own.requests) == 11

    asyncio.run(main())


async def garbage(fake: FakeModelTier) -> None:
    """Answer every request with a frame that does not add up."""
    answered = 0
    while True:
        received = await fake.request(answered)
        answered += 1
        await received.session.send(Frame(handles=[received.handle], counts=[5], token_ids=[1]))


def test_a_tier_that_answers_garbage_is_passed_over_while_requests_go_on_elsewhere(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 3.0)  # long enough for twenty requests on a busy machine

    async def main() -> None:
        async with fake_model_tier(hold=True) as bad, fake_model_tier() as good:
            async with live_tokenizer_tier(
                trained_folder, bad, good, routing_policy="least-load", breaker_failures=3
            ) as live:
                peer = await TextPeer.open(live)
                spoiling = asyncio.ensure_future(garbage(bad))
                handle = 0
                while len(bad.requests) < 3:
                    handle += 1
                    await live.until_ready(2)
                    terminal = await generate(peer, handle)
                    assert terminal.reason is FinishReason.LENGTH, "each went on elsewhere"
                await until(lambda: live.server.replicas[0].state == "ejected")
                assert live.server.tier.router.num_ready == 1
                assert "columns do not match" in live.server.replicas[0].problem()
                assert live.metric("ejections_total") == 1
                await until(lambda: live.metric("model_replicas", state="ejected") == 1)
                await until(lambda: live.metric("model_replicas", state="ready") == 1)
                for _ in range(20):
                    handle += 1
                    assert (await generate(peer, handle)).reason is FinishReason.LENGTH
                assert len(bad.requests) == 3, "nothing went there"
                spoiling.cancel()
                bad.hold = False
                await live.until_ready(2)  # its pause is over
                while live.server.replicas[0].state != "ready" or len(bad.requests) < 5:
                    handle += 1
                    assert (await generate(peer, handle)).reason is FinishReason.LENGTH
                assert live.metric("ejections_total") == 1

    asyncio.run(main())


def test_the_only_tier_is_used_however_often_it_fails(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as fake:
            async with live_tokenizer_tier(trained_folder, fake, breaker_failures=2, max_resumes=0) as live:
                peer = await TextPeer.open(live)
                for handle in range(1, 8):
                    await peer.submit(handle, text_request("hello"))
                    received = await fake.request(handle - 1)
                    await received.end(Terminal(FinishReason.ERROR, error=Unavailable("engine lost")))
                    assert (await peer.end(handle)).reason is FinishReason.ERROR
                assert live.metric("ejections_total") >= 1
                await peer.submit(8, text_request("hello"))
                await (await fake.request(7)).end(DONE)
                assert (await peer.end(8)).reason is FinishReason.LENGTH
                assert not live.server.replicas[0].problem(), "one good end closes it"

    asyncio.run(main())


class FakeDns:
    def __init__(self, *tiers: FakeModelTier) -> None:
        self.tiers = tiers

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("model", 50053)
        return [tier.target for tier in self.tiers]


def test_replicas_that_a_name_gives_come_and_go_and_one_that_goes_runs_out(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            dns = FakeDns(first)
            settings = {"model_targets": "dns:///model:50053", "discovery_interval_s": 0.1}
            async with live_tokenizer_tier(trained_folder, wait=False, resolve=dns, **settings) as live:
                await live.until_ready(1)
                peer = await TextPeer.open(live)
                await peer.submit(1, text_request("hello"))
                running = await first.request()
                await running.say(*live.ids("half"))
                dns.tiers = (second,)
                await until(lambda: [each.target for each in live.server.replicas] == [second.target])
                await live.until_ready(1)
                await until(lambda: live.metric("model_replicas", state="leaving") == 1)
                await peer.submit(2, text_request("hello"))
                await (await second.request()).end(DONE)
                await peer.end(2)
                await running.say(*live.ids(" and half"))
                await running.end(DONE)
                assert (await peer.end(1)).reason is FinishReason.LENGTH
                assert peer.texts[1] == "half and half"
                await until(lambda: len(live.server.replica_set.all) == 1)
                assert len(first.requests) == 1
                dns.tiers = (first, second)
                await live.until_ready(2)

    asyncio.run(main())


def test_a_file_of_targets_is_followed(trained_folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "targets"
        path.write_text("")
        async with fake_model_tier() as fake:
            settings = {"model_targets": f"file:{path}", "discovery_interval_s": 0.1}
            async with live_tokenizer_tier(trained_folder, wait=False, **settings) as live:
                peer = await TextPeer.open(live)
                terminal = await generate(peer, 1)
                assert isinstance(terminal.error, Unavailable) and "none is known" in terminal.error.message
                path.write_text(f"# one\n{fake.target}\n")
                await live.until_ready(1)
                assert (await generate(peer, 2)).reason is FinishReason.LENGTH

    asyncio.run(main())
