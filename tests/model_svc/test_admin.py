import asyncio
import os
import signal

from tests.fakes.live_model_tier import LiveTier, RawSession, live_model_tier, token_request
from tokenwire.requests import FinishReason
from tokenwire.v1 import model_pb2, model_pb2_grpc
from tokenwire.wire import FINISH_TO_WIRE


def admin(live: LiveTier) -> model_pb2_grpc.ModelAdminServiceStub:
    return model_pb2_grpc.ModelAdminServiceStub(live.channel)


async def paused(live: LiveTier) -> bool:
    return bool((await live.stub.GetLoad(model_pb2.GetLoadRequest())).load.paused)


def test_paused_what_runs_goes_on_what_comes_waits_and_resume_starts_it() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=100)})
            await session.read()
            await admin(live).Pause(model_pb2.PauseRequest())
            await admin(live).Pause(model_pb2.PauseRequest())
            expiring = token_request([3], max_tokens=5, timeout_ms=300)
            await session.submit({2: token_request([2], max_tokens=5), 3: expiring})
            await session.read_until_finished(1, 3)
            assert len(session.tokens[1]) == 100
            assert session.finishes[3].reason == FINISH_TO_WIRE[FinishReason.DEADLINE]
            assert 2 not in session.tokens and await paused(live)
            assert live.tier.engine.load.queued == 1
            await admin(live).Resume(model_pb2.ResumeRequest())
            await session.read_until_finished(2)
            assert len(session.tokens[2]) == 5
            assert not await paused(live)

    asyncio.run(main())


def test_a_pause_outlives_the_engine_process() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            await admin(live).Pause(model_pb2.PauseRequest())
            epoch = live.tier.engine.epoch
            os.kill(live.tier.engine.pid or 0, signal.SIGKILL)
            async with asyncio.timeout(20):
                while live.tier.engine.epoch in (0, epoch) or not await paused(live):
                    await asyncio.sleep(0.01)

    asyncio.run(main())
