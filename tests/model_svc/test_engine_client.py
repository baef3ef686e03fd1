import asyncio
import errno
import logging
import os
import signal
from dataclasses import replace

import pytest

from model_svc.engine.sequence import Sequence
from model_svc.engine_process import EngineProcess
from model_svc.settings import EngineSettings
from tests.fakes.live_model_tier import LiveTier, RawSession, live_model_tier, token_request
from tokenwire.errors import Unavailable
from tokenwire.requests import Terminal
from tokenwire.sampling import NEUTRAL, StopParams
from tokenwire.status import from_wire


class BrokenSink:
    """Has a bug."""

    def on_token(self, handle: int, token_id: int, logprob: object) -> None:
        raise ZeroDivisionError("a bug")

    def on_prompt_logprobs(self, handle: int, logprobs: object) -> None:
        pass

    def on_end(self, handle: int, terminal: Terminal) -> None:
        pass

    def flush(self) -> None:
        pass


async def until_back(live: LiveTier, epoch: int) -> None:
    async with asyncio.timeout(20):
        while live.tier.engine.epoch in (0, epoch):
            await asyncio.sleep(0.01)


def test_a_bug_while_delivering_ends_every_request_and_the_engine_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            engine = live.tier.engine
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=8000)})
            await session.read()
            epoch = engine.epoch
            greedy = replace(NEUTRAL, seed=0)
            engine.submit(Sequence(engine.next_id(), [1, 2], 2, greedy, StopParams(5)), BrokenSink(), 1)
            await session.read_until_finished(1)
            assert from_wire(session.finishes[1].error).reason == "ENGINE_LOST"
            await until_back(live, epoch)
            again = await RawSession.open(live.stub)
            await again.submit({1: token_request([1], max_tokens=3)})
            await again.read_until_finished(1)
            assert len(again.tokens[1]) == 3

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


def test_an_engine_that_hangs_is_started_anew_and_one_that_has_nothing_to_do_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with live_model_tier(engine_timeout_s=2.0) as live:
            engine = live.tier.engine
            epoch = engine.epoch
            await asyncio.sleep(5)
            assert engine.epoch == epoch, "it was idle, and said so when asked"
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=8000)})
            await session.read()
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGSTOP)
            await session.read_until_finished(1)
            assert from_wire(session.finishes[1].error).reason == "ENGINE_LOST"
            await until_back(live, epoch)
            again = await RawSession.open(live.stub)
            await again.submit({1: token_request([1], max_tokens=3)})
            await again.read_until_finished(1)
            assert len(again.tokens[1]) == 3

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert any("silent for 2 s" in record.message for record in caplog.records)


def test_without_a_limit_nobody_watches_the_engine() -> None:
    async def main() -> None:
        async with live_model_tier(engine_timeout_s=0.0) as live:
            engine = live.tier.engine
            epoch = engine.epoch
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGSTOP)
            await asyncio.sleep(1)
            os.kill(engine.pid, signal.SIGCONT)
            assert engine.epoch == epoch

    asyncio.run(main())


def test_an_engine_process_that_cannot_be_made_for_the_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_svc.engine_client.FIRST_BACKOFF_S", 0.01)
    start, tries = EngineProcess.start, 0

    async def starts_the_third_time(settings: EngineSettings) -> EngineProcess:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return await start(settings)

    async def main() -> None:
        async with live_model_tier() as live:
            epoch, pid = live.tier.engine.epoch, live.tier.engine.pid
            assert pid is not None
            monkeypatch.setattr(EngineProcess, "start", starts_the_third_time)
            os.kill(pid, signal.SIGKILL)
            await until_back(live, epoch)
            assert tries == 3


def test_a_process_that_does_not_end_keeps_nobody_from_hearing_that_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    close = EngineProcess.close

    async def main() -> None:
        ends = asyncio.Event()

        async def ends_late(process: EngineProcess) -> int | None:
            await ends.wait()
            return await close(process)

        async with live_model_tier() as live:
            engine = live.tier.engine
            epoch, pid = engine.epoch, engine.pid
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1], max_tokens=8000)})
            await session.read()
            monkeypatch.setattr(EngineProcess, "close", ends_late)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            try:
                await session.read_until_finished(1)
                assert from_wire(session.finishes[1].error).reason == "ENGINE_LOST"
                assert engine.pid is None and engine.room == (0, 0)
                with pytest.raises(Unavailable):
                    engine.admit([])
            finally:
                ends.set()
            await until_back(live, epoch)

    asyncio.run(main())
