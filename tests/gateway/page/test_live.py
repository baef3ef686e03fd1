"""GET /live against a running gateway: what is shown, to whom, and that it costs nothing while nobody looks."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

import gateway.page.feed
import gateway.page.routes
from gateway.page.feed import LiveFeed
from tests.fakes.entrances import asking
from tests.fakes.identities import Callers, Issuer
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tests.fakes.whole_stack import whole_stack
from tokenwire.errors import Overloaded
from tokenwire.v1 import common_pb2, tokenizer_pb2


@asynccontextmanager
async def looking(live: LiveGateway, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The pictures that a viewer gets."""

    async def pictures(response: Any) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line:
                assert line.startswith("data: "), line
                yield json.loads(line[6:])

    async with asyncio.timeout(20), live.http.stream("GET", "/live", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield pictures(response)


async def until(pictures: AsyncIterator[dict[str, Any]], condition: Any) -> dict[str, Any]:
    async for picture in pictures:
        if condition(picture):
            return picture
    raise AssertionError("the view ended")


def feed_of(live: LiveGateway) -> LiveFeed:
    feed = live.server._feed
    assert feed is not None
    return feed


def test_a_real_stack_shows_its_batch_its_blocks_and_where_the_time_went(trained_folder: Path) -> None:
    async def main() -> None:
        async with whole_stack(trained_folder, mock_step_ms=20.0) as stack:
            live = stack.gateway
            async with looking(live) as pictures:
                first = await until(pictures, lambda each: each["model_tiers"] and "step" in each["model_tiers"][0])
                (tier,) = first["model_tiers"]
                assert tier["state"] == "ready" and tier["running"] == 0 and tier["kv_blocks_total"] > 0
                assert tier["target"] == f"127.0.0.1:{stack.model.port}"
                assert first["tokenizer_tiers"][0] | {"target": ""} == {
                    "state": "ready", "open_here": 0, "told": True, "target": "", "running": 0, "held": 0,
                    "oldest_held_s": 0.0,
                }  # fmt: skip
                asked = asyncio.create_task(
                    live.http.post("/generate", json={"inputs": ["one two"] * 3, "max_tokens": 150, "ignore_eos": True})
                )
                busy = await until(pictures, lambda each: each["model_tiers"][0]["running"] == 3)
                assert busy["model_tiers"][0]["kv_blocks_used"] >= 3
                assert len(busy["requests"]) == 3 == busy["gateway"]["open"]
                assert {each["priority"] for each in busy["requests"]} == {0}
                assert (await asked).status_code == 200
                done = await until(pictures, lambda each: each["gateway"]["open"] == 0)
                assert done["requests"] == []
                recent = done["recent"][-3:]
                assert [each["reason"] for each in recent] == ["length"] * 3
                assert {each["number"] for each in recent} == {each["number"] for each in busy["requests"]}
                for each in recent:
                    assert each["completion_tokens"] == 150
                    phases = sum(each[name] for name in ("tokenizer_s", "queue_s", "prefill_s", "decode_s"))
                    assert 0 < phases <= each["total_s"]

    asyncio.run(main())


def test_nothing_is_asked_or_made_while_nobody_looks() -> None:
    async def main() -> None:
        async with counting_tier() as (tier, asked), live_gateway(tier) as live:
            await live.until_ready()
            assert (feed_of(live).num_made, asked) == (0, [])
            async with looking(live) as first, looking(live) as second:
                for _ in range(3):
                    await anext(first), await anext(second)
                assert feed_of(live).num_viewers == 2
                assert len(asked) <= feed_of(live).num_made + 1, "one picture for all"
            await live.until(lambda: feed_of(live).num_viewers == 0)
            await asyncio.sleep(0)
            made, num_asked = feed_of(live).num_made, len(asked)
            await asyncio.sleep(3 * gateway.page.feed.INTERVAL_S)
            assert (feed_of(live).num_made, len(asked)) == (made, num_asked)
            async with looking(live) as again:
                await anext(again)

    asyncio.run(main())


@asynccontextmanager
async def counting_tier() -> AsyncIterator[tuple[FakeTokenizerTier, list[Any]]]:
    """A tokenizer tier with one model tier behind it, which two addresses lead to, and one that is not reached."""
    asked: list[Any] = []
    async with fake_tokenizer_tier() as tier:

        async def tier_load(request: Any, context: Any) -> Any:
            asked.append(request)
            models = [
                tokenizer_pb2.ModelTierLoad(
                    target=f"10.0.0.{step}:1", state="ready", epoch=7, load=common_pb2.Load(running=step, step=step)
                )
                for step in (4, 5)
            ]
            models.append(tokenizer_pb2.ModelTierLoad(target="10.0.0.9:1", state="unreachable"))
            return tokenizer_pb2.GetTierLoadResponse(running=2, held=1, oldest_held_us=1_500_000, model_tiers=models)

        tier.tier_load = tier_load
        yield tier, asked


def test_a_model_tier_that_several_know_is_shown_once_as_it_was_last() -> None:
    async def main() -> None:
        async with counting_tier() as (tier, _), live_gateway(tier) as live:
            await live.until_ready()
            async with looking(live) as pictures:
                picture = await anext(pictures)
            known, lost = picture["model_tiers"]
            assert (known["target"], known["running"], known["step"]) == ("10.0.0.5:1", 5, 5)
            assert lost == {"state": "unreachable", "credit": 0, "epoch": "0", "target": "10.0.0.9:1"}
            assert picture["tokenizer_tiers"][0]["oldest_held_s"] == 1.5

    asyncio.run(main())


def test_a_tier_that_does_not_know_the_question_is_shown_without_its_load() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live), looking(live) as pictures:
            picture = await anext(pictures)
            (tier,) = picture["tokenizer_tiers"]
            assert (tier["told"], picture["model_tiers"]) == (False, [])
            assert "running" not in tier

    asyncio.run(main())


def test_pictures_say_nothing_of_whose_requests_they_are(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (tier, live):
            headers = {**callers.header("alice"), "x-request-id": "secret-id"}
            body = {"prompt": "!hold secret-word", "stream": True, "user": "secret-user"}
            async with live.http.stream("POST", "/v1/completions", json=body, headers=headers):
                async with looking(live, **callers.header("root")) as pictures:
                    picture = await until(pictures, lambda each: each["requests"])
                    assert not any(word in json.dumps(picture) for word in ("secret", "alice"))
                    assert picture["tokenizer_tiers"][0]["target"] == tier.target
            async with looking(live, **callers.header("root")) as pictures:
                done = await until(pictures, lambda each: each["recent"] and not each["requests"])
                assert done["recent"][-1]["reason"] == "cancelled"

    asyncio.run(main())


def test_open_metrics_open_the_view_without_addresses(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer, open_metrics=True) as (tier, live), looking(live) as pictures:
            picture = await anext(pictures)
            assert "target" not in picture["tokenizer_tiers"][0]
            assert "127.0.0.1" not in json.dumps(picture)

    asyncio.run(main())


def test_where_nobody_is_asked_addresses_are_shown_with_open_metrics_too() -> None:
    async def main() -> None:
        async with gateway_over_fake(open_metrics=True) as (tier, live), looking(live) as pictures:
            assert (await anext(pictures))["tokenizer_tiers"][0]["target"] == tier.target

    asyncio.run(main())


def test_a_key_that_is_taken_away_ends_the_view(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (_, live), looking(live, **callers.header("root")) as pictures:
            await anext(pictures)
            callers.whole["keys"] = [each for each in callers.whole["keys"] if each["name"] != "root"]
            callers.save()
            last = await until(pictures, lambda each: "error" in each)
            assert last["error"]["type"] == "authentication_error"
            with pytest.raises(StopAsyncIteration):
                await anext(pictures)

    asyncio.run(main())


def test_too_many_viewers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.page.feed, "MAX_VIEWERS", 1)

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            async with looking(live) as pictures:
                await anext(pictures)
                response = await live.http.get("/live")
                assert response.status_code == 429 and response.headers["retry-after"] == "5"
                assert response.json()["error"]["code"] == "too_many_viewers"
            await live.until(lambda: feed_of(live).num_viewers == 0)
            async with looking(live) as pictures:
                await anext(pictures)

    asyncio.run(main())


def test_who_has_most_views_makes_way_for_who_has_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.page.feed, "MAX_VIEWERS", 3)

    async def main() -> None:
        async with gateway_over_fake() as (_, live), AsyncExitStack() as stack:
            pictures = [await stack.enter_async_context(looking(live)) for _ in range(3)]
            for each in pictures:
                await anext(each)
            with pytest.raises(Overloaded, match="3 are yours"), feed_of(live).viewing("127.0.0.1"):
                pass
            with feed_of(live).viewing("::1") as other:
                last = await until(pictures[0], lambda each: "error" in each)
                assert last["error"]["code"] == "too_many_viewers", "the oldest"
                assert feed_of(live).num_viewers == 3
                with pytest.raises(Overloaded), feed_of(live).viewing("::1"):
                    pass
                for each in pictures[1:]:
                    assert "error" not in await anext(each)
                assert not other.displaced and await feed_of(live).next_picture(other)
            assert feed_of(live).num_viewers == 2

    asyncio.run(main())


def test_a_viewer_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.page.routes, "TAKEN_WITHIN_S", 0.1)
    monkeypatch.setattr(gateway.page.feed, "snapshot", lambda *args, **kwargs: {"picture": "x" * 10_000})

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            feed_of(live)._interval_s = 0.001
            viewer = socket.create_connection(("127.0.0.1", live.server.http.port))
            viewer.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await live.until(lambda: feed_of(live).num_viewers == 1)
            await live.until(lambda: feed_of(live).num_viewers == 0)
            received = await asyncio.to_thread(everything_from, viewer)
            assert 0 < received < 1_000_000, "more waits in no buffer"

    asyncio.run(main())


def everything_from(connection: socket.socket) -> int:
    """How many bytes there are until its end, or until it is cut."""
    received = 0
    with connection, contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            received += len(piece)
    return received


def test_a_viewer_who_leaves_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for _ in range(3):
                async with looking(live) as pictures:
                    await anext(pictures)
            await live.until(lambda: feed_of(live).num_viewers == 0)
            assert (await live.http.get("/healthz")).status_code == 200
        assert "Exception in ASGI" not in caplog.text

    uvloop.run(main())  # whose transports know nothing more of themselves once they are closed


def test_a_gateway_that_drains_ends_the_views_at_once() -> None:
    async def main() -> None:
        async with gateway_over_fake(drain_timeout_s=20.0) as (_, live), looking(live) as pictures:
            await anext(pictures)
            drained = asyncio.create_task(live.server.drain())
            async with asyncio.timeout(10):
                async for _ in pictures:
                    pass
            await live.http.aclose()
            await drained

    asyncio.run(main())


def test_a_picture_that_cannot_be_made_ends_the_view_and_the_next_one_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            with monkeypatch.context() as patch:
                patch.setattr(gateway.page.feed, "snapshot", fail)
                async with looking(live) as pictures:
                    with pytest.raises(StopAsyncIteration):
                        await anext(pictures)
            assert "could not be made" in caplog.text
            async with looking(live) as pictures:
                assert (await anext(pictures))["gateway"]["open"] == 0

    asyncio.run(main())


def test_the_tiers_method_is_not_offered_to_clients() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            call = live.channel.unary_unary("/tokenwire.v1.TokenizerService/GetTierLoad")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())
