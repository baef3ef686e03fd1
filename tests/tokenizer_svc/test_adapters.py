"""The tokenizer tier over model tiers with different adapters: who gets what, and what is known above."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, TextPeer, live_tokenizer_tier, text_request
from tests.fakes.model_tier import FakeModelTier, fake_model_tier
from tokenwire.requests import Terminal
from tokenwire.v1 import tokenizer_pb2

PROMPT = "a prompt that is long enough to fill several blocks of four tokens each, whatever the tokenizer makes of it"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def generate(peer: TextPeer, handle: int, *, adapter: str = "", model: str = "") -> Terminal:
    request = text_request(PROMPT)
    request.options.adapter, request.model = adapter, model
    await peer.submit(handle, request)
    return await peer.end(handle)


async def listed(live: LiveTokenizerTier) -> list[str]:
    return list((await live.stub.ListModels(tokenizer_pb2.ListModelsRequest())).models[0].adapters)


def asked(fake: FakeModelTier) -> list[str]:
    return [received.request.options.adapter for received in fake.requests]


@pytest.mark.parametrize("policy", ["least-load", "power-of-two", "prefix-cache", "session-affinity"])
def test_a_request_goes_only_where_its_adapter_is(trained_folder: Path, policy: str) -> None:
    async def main() -> None:
        async with fake_model_tier(adapters=["a", "b"]) as first, fake_model_tier(adapters=["b", "c"]) as second:
            async with live_tokenizer_tier(trained_folder, first, second, routing_policy=policy) as live:
                await live.until_ready(2)
                peer = await TextPeer.open(live)
                assert list(peer.hello.models[0].adapters) == await listed(live) == ["a", "b", "c"]
                for handle in range(1, 25, 3):
                    for offset, adapter in enumerate("abc"):
                        assert (await generate(peer, handle + offset, adapter=adapter)).error is None
                assert set(asked(first)) <= {"a", "b"} and set(asked(second)) <= {"b", "c"}
                assert asked(first).count("a") == asked(second).count("c") == 8
                assert len(first.requests) + len(second.requests) == 24

    asyncio.run(main())


def test_an_adapter_is_asked_for_by_option_or_as_the_model(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(adapters=["poet"]) as fake:
            async with live_tokenizer_tier(trained_folder, fake, served_name="base") as live:
                await live.until_ready(1)
                peer = await TextPeer.open(live)
                asking = ({"adapter": "poet"}, {"model": "poet"}, {"model": "poet", "adapter": "poet"},
                          {"model": "base", "adapter": "poet"}, {"model": "base"}, {})  # fmt: skip
                for handle, fields in enumerate(asking, start=1):
                    assert (await generate(peer, handle, **fields)).error is None
                assert asked(fake) == ["poet"] * 4 + [""] * 2
                error = (await generate(peer, 7, model="other")).error
                assert error is not None and (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
                assert "'base', 'poet'" in error.message
                error = (await generate(peer, 8, adapter="other")).error
                assert error is not None and (error.code, error.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
                await fake.change_adapters("poet", "other")
                await until(lambda: "other" in live.server.tier.adapters)
                error = (await generate(peer, 9, adapter="other", model="poet")).error
                assert error is not None and error.violations[0].field == "options.adapter"
                await live.stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=["x"], model="poet"))

    asyncio.run(main())


def test_adapters_that_come_and_go_are_heard_of_above_and_below(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier() as fake:
            async with live_tokenizer_tier(trained_folder, fake) as live:
                await live.until_ready(1)
                peer = await TextPeer.open(live)
                assert not peer.hello.models[0].adapters and await listed(live) == []
                await fake.change_adapters("new")
                frame = await peer.read()
                assert list(frame.models[0].adapters) == await listed(live) == ["new"]
                assert (await generate(peer, 1, adapter="new")).error is None
                await fake.change_adapters()
                assert not (await peer.read()).models[0].adapters
                error = (await generate(peer, 2, adapter="new")).error
                assert error is not None and error.reason == "ADAPTER_NOT_FOUND"

    asyncio.run(main())


def test_a_cached_prefix_counts_for_its_adapter_alone(trained_folder: Path) -> None:
    async def main() -> None:
        names = ["a", "b"]
        async with (
            fake_model_tier(caches=True, adapters=names) as one,
            fake_model_tier(caches=True, adapters=names) as two,
        ):
            async with live_tokenizer_tier(trained_folder, one, two, routing_policy="prefix-cache") as live:
                await live.until_ready(2)
                peer = await TextPeer.open(live)
                await generate(peer, 1, adapter="a")
                holder = one if one.requests else two
                num_blocks = len(live.ids(PROMPT)) // 4
                await until(lambda: sum(len(replica.cache) for replica in live.server.replicas) == num_blocks)
                for handle in range(2, 12):
                    await generate(peer, handle, adapter="a")
                assert len(holder.requests) == 11
                assert live.metric("picks_total", reason="prefix") == 10
                await generate(peer, 12, adapter="b")
                await generate(peer, 13)
                assert live.metric("picks_total", reason="prefix") == 10, "others have cached nothing yet"

    asyncio.run(main())


def test_a_request_waits_for_the_tier_that_has_its_adapter_and_goes_to_no_other(trained_folder: Path) -> None:
    async def main() -> None:
        from_now = {"resume_wait_s": 0.2}
        async with fake_model_tier(adapters=["a"], hold=True) as fake, fake_model_tier() as other:
            async with live_tokenizer_tier(trained_folder, fake, other, **from_now) as live:
                await live.until_ready(2)
                peer = await TextPeer.open(live)
                request = text_request(PROMPT)
                request.options.adapter = "a"
                await peer.submit(1, request)
                await fake.request()
                await fake.kill()  # the request is held: the tier that has its adapter may come back
                await until(lambda: live.server.tier.router.num_ready == 1)
                terminal = await peer.end(1)
                assert terminal.error is not None and terminal.error.code == "UNAVAILABLE"
                assert not other.requests, "it never goes where its adapter is not"

    asyncio.run(main())
