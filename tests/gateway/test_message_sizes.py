"""Requests that are large, together or alone: none of them may end the session below, which all callers share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request
from tests.fakes.tokenizer_tier import FakeTokenizerTier
from tokenwire.client import AsyncClient
from tokenwire.errors import InvalidRequest, MessageTooLarge
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2

LIMIT = 16 * 2**20


@asynccontextmanager
async def beside_another(**settings: Any) -> AsyncIterator[tuple[FakeTokenizerTier, LiveGateway]]:
    """A tier and a gateway with a request that runs throughout, and must not notice anything."""
    async with gateway_over_fake(**settings) as (tier, live):
        other = live.stub.Generate(generate_request("!step and goes on"))
        reading = asyncio.ensure_future(_texts(other))
        await live.until(lambda: tier.num_running == 1)
        yield tier, live
        while not reading.done():
            tier.step()
            await asyncio.sleep(0.002)
        assert reading.result() == "and goes on"
        assert len(tier.sessions) == 1, "the session never broke"


async def _texts(call: Any) -> str:
    return "".join([response.delta.text async for response in call])


def test_calls_at_once_with_many_prompts_that_share_a_large_schema() -> None:
    async def main() -> None:
        async with beside_another() as (tier, live):
            schema = '{"type":"object","description":"' + "d" * 30_000 + '"}'
            options = common_pb2.GenerationOptions(constraint=common_pb2.Constraint(json_schema=schema))
            request = generate_request(*["a"] * 400, options=options)
            assert request.ByteSize() < 40_000

            async def num_ends() -> int:
                return sum([response.HasField("finish") async for response in live.stub.Generate(request)])

            assert await asyncio.gather(num_ends(), num_ends()) == [400, 400]
            assert len(tier.requests) == 801

    asyncio.run(main())


def test_a_prompt_larger_than_a_message_is_refused_alone() -> None:
    async def main() -> None:
        async with beside_another(max_message_bytes=4096) as (_, live):
            answer = await live.http.post("/v1/completions", json={"model": "echo", "prompt": "x" * 5000})
            assert answer.status_code == 413, answer.text
            assert "at most 4096" in answer.json()["error"]["message"]
            answer = await live.http.post("/v1/completions", json={"model": "echo", "prompt": "x y"})
            assert answer.status_code == 200, answer.text
            assert live.server.backends.num_open == 1

    asyncio.run(main())


def test_what_the_gateway_adds_to_a_message_just_below_the_limit_fits() -> None:
    async def main() -> None:
        async with beside_another() as (_, live):
            trace = [("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")]
            request = generate_request("!bad x")
            request.prompts[0].text += "x" * (LIMIT - request.ByteSize() - 8)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Generate(request, timeout=50, metadata=trace).read()
            assert "999" in str(from_rpc_error(caught.value))
            async with AsyncClient(live.grpc_target) as client, client.session() as session:
                large = await session.submit("!bad " + "x" * (LIMIT - 120), timeout_s=50)
                with pytest.raises(InvalidRequest, match="999"):
                    await large.text()

    asyncio.run(main())


def test_a_request_that_is_repeated_in_its_refusal_is_not_repeated_whole() -> None:
    async def main() -> None:
        async with beside_another() as (_, live):
            options = common_pb2.GenerationOptions(num_choices=16)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Generate(generate_request("a", model="m" * 5_000_000, options=options)).read()
            error = from_rpc_error(caught.value)
            assert not isinstance(error, MessageTooLarge) and len(error.message) < 5000

    asyncio.run(main())
