import asyncio

import grpc
import pytest

from tests.fakes.live_gateway import generate_request, live_gateway
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tokenwire.errors import Unavailable
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2


def test_requests_go_to_the_tier_with_the_fewest() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await live.until(lambda: all(b.ready for b in live.server.backends.tiers))
            calls = [live.stub.Generate(generate_request("!hang")) for _ in range(6)]
            for call in calls:
                asyncio.ensure_future(call.initial_metadata())
            await live.until(lambda: (one.num_running, two.num_running) == (3, 3))
            for call in calls:
                call.cancel()
            await live.until_idle()
            assert [b.num_open for b in live.server.backends.tiers] == [0, 0]

    asyncio.run(main())


def test_a_tier_without_a_model_behind_it_is_left_out() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier(serving=False) as idle, fake_tokenizer_tier() as ready:
            async with live_gateway(idle, ready) as live:
                await live.until(lambda: all(b.session.stream for b in live.server.backends.tiers))
                for _ in range(4):
                    await live.generate("a")
                assert (len(idle.requests), len(ready.requests)) == (0, 4)

    asyncio.run(main())


def test_a_request_lost_before_its_first_text_goes_to_another_tier_once() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await live.until(lambda: all(b.ready for b in live.server.backends.tiers))
            call = live.stub.Generate(generate_request("!step a b", context=pb.RequestContext(request_id="kept")))
            await live.until(lambda: one.num_running + two.num_running == 1)
            first, second = (one, two) if one.num_running else (two, one)
            await first.kill()
            await live.until(lambda: second.num_running == 1)
            assert [r.context.request_id for r in second.requests] == ["kept"]
            reading = asyncio.ensure_future(read_text(call))
            while not reading.done():
                second.step()
                await asyncio.sleep(0.002)
            assert reading.result() == "a b"

    asyncio.run(main())


async def read_text(call) -> str:
    text = ""
    while (response := await call.read()) is not grpc.aio.EOF:
        text += response.delta.text
    return text


@pytest.mark.parametrize("prompt", ["!hold a b", "!hang"])
def test_a_request_lost_after_its_first_text_or_with_its_only_tier_ends_with_a_typed_error(prompt: str) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, live_gateway(one) as live:
            call = live.stub.Generate(generate_request(prompt))
            await one.until(lambda: one.num_running == 1)
            if prompt.startswith("!hold"):
                assert (await call.read()).delta.text == "a"
            await one.kill()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_text(call)
            error = from_rpc_error(caught.value)
            assert type(error) is Unavailable and error.reason == "TOKENIZER_TIER_LOST"
            await live.until_idle()
            await live.until(lambda: live.server.backends.missing() != "")

    asyncio.run(main())


def test_a_request_that_began_is_not_begun_again_elsewhere() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await live.until(lambda: all(b.ready for b in live.server.backends.tiers))
            call = live.stub.Generate(generate_request("!hold a b"))
            assert (await call.read()).delta.text == "a"
            first, second = (one, two) if one.num_running else (two, one)
            await first.kill()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_text(call)
            assert from_rpc_error(caught.value).reason == "TOKENIZER_TIER_LOST"
            assert second.requests == []

    asyncio.run(main())


def test_a_unary_call_is_tried_on_another_tier() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await live.until(lambda: all(b.ready for b in live.server.backends.tiers))
            await one.kill()
            for _ in range(3):
                encoded = await live.stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=["a b"]))
                assert list(encoded.encodings[0].token_ids) == [0, 1]

    asyncio.run(main())


def test_readiness_follows_the_tiers_health() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier(serving=False) as tier, live_gateway(tier, wait=False) as live:
            await live.until(lambda: "no model is ready" in live.server.backends.missing())
            assert tier.server is not None
            await tier.server.set_serving(True)
            await live.until_ready()
            assert live.server.backends.missing() == ""
            await tier.server.set_serving(False)
            await live.until(lambda: not live.server.backends.ready)

    asyncio.run(main())
