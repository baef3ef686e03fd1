"""What a draining model tier owes its peers: one terminal event for each request, and no waiting for nothing."""

import asyncio
import time

import grpc
import pytest

from tests.fakes.live_model_tier import LiveTier, RawSession, live_model_tier, token_request
from tokenwire.status import from_rpc_error, from_wire
from tokenwire.v1 import model_pb2, model_pb2_grpc


async def read_to_the_end(session: RawSession) -> None:
    """Read until the server ends the stream, which must be without an error."""
    async with asyncio.timeout(20):
        while (frame := await session.call.read()) is not grpc.aio.EOF:
            for finish in frame.finishes:
                assert finish.handle not in session.finishes, "a second terminal event"
                session.finishes[finish.handle] = finish
    assert await session.call.code() is grpc.StatusCode.OK


def reasons(session: RawSession) -> dict[int, str]:
    """Those that ended with an error."""
    return {h: from_wire(finish.error).reason for h, finish in session.finishes.items() if finish.HasField("error")}


def test_when_time_is_up_every_request_ends_with_one_terminal_event_and_then_the_stream() -> None:
    async def main() -> None:
        async with live_model_tier(drain_timeout_s=6.0, max_batch_size=1, mock_step_ms=5.0) as live:
            session = await RawSession.open(live.stub)
            await session.submit({h: token_request([h, 2], max_tokens=8000) for h in (1, 2)})
            await session.read()
            call = live.stub.Generate(
                model_pb2.ModelServiceGenerateRequest(request=token_request([9], max_tokens=8000))
            )
            draining = asyncio.ensure_future(live.tier.drain())
            await read_to_the_end(session)
            assert reasons(session) == {1: "SHUTTING_DOWN", 2: "SHUTTING_DOWN"}
            with pytest.raises(grpc.aio.AioRpcError, match="drain_timeout_s") as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await draining

    asyncio.run(main())


def test_while_it_drains_no_session_is_opened_even_on_a_connection_that_is_open() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            await RawSession.open(live.stub)
            live.tier.state.draining = True
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Session().read()
            assert from_rpc_error(caught.value).reason == "DRAINING"

    asyncio.run(main())


def test_a_session_without_a_request_does_not_hold_up_the_drain() -> None:
    async def main() -> None:
        async with live_model_tier(drain_timeout_s=30.0) as live:
            session = await RawSession.open(live.stub)
            began_s = time.monotonic()
            draining = asyncio.ensure_future(live.tier.drain())
            await read_to_the_end(session)
            await draining
            assert time.monotonic() - began_s < 15

    asyncio.run(main())


@pytest.mark.parametrize("paused_first", [True, False])
def test_what_a_paused_tier_has_not_started_ends_when_it_drains(paused_first: bool) -> None:
    async def main() -> None:
        async with live_model_tier(drain_timeout_s=30.0, mock_step_ms=5.0, max_batch_size=1) as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1, 2], max_tokens=100)})
            await session.read()
            if paused_first:
                await pause(live)
            await session.submit({2: token_request([3, 4], max_tokens=100)})
            draining = asyncio.ensure_future(live.tier.drain())
            if not paused_first:
                await asyncio.sleep(0)
                live.tier.engine.pause(True)
            await read_to_the_end(session)
            assert list(session.finishes) == [2, 1], "what ran goes on to its end"
            assert reasons(session) == {2: "SHUTTING_DOWN"}
            await draining

    asyncio.run(main())


async def pause(live: LiveTier) -> None:
    await model_pb2_grpc.ModelAdminServiceStub(live.channel).Pause(model_pb2.PauseRequest())
