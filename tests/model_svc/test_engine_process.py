"""The engine process is started, spoken to and ended; this is the real one, with the mock engine."""

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_svc import engine_process
from model_svc.engine.events import Inbox, StepResult
from model_svc.engine.sequence import Sequence
from model_svc.engine_process import EngineProcess
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition, Unavailable
from tokenwire.sampling import NEUTRAL, StopParams

MOCK = EngineSettings(engine="mock", mock_step_ms=1.0)


def test_it_answers_every_message_with_what_was_made_and_ends_when_its_socket_does() -> None:
    async def main() -> None:
        process = await EngineProcess.start(MOCK)
        assert process.info.device == "mock" and process.adapters == ()
        sequence = Sequence(7, [1, 2], 2, replace(NEUTRAL, seed=0), StopParams(3))
        await process.write(Inbox(sequences=[sequence]))
        tokens: list[int] = []
        while True:
            result = await process.read()
            assert isinstance(result, StepResult) and result.num_received == 1
            tokens += result.new.token_ids
            if result.ended:
                break
        assert len(tokens) == 3 and [ended.sequence_id for ended in result.ended] == [7]
        assert await process.close() == 0

    asyncio.run(main())


def test_what_it_refuses_is_raised_and_nothing_is_left() -> None:
    async def main() -> None:
        with pytest.raises(FailedPrecondition) as caught:
            await EngineProcess.start(replace(MOCK, tensor_parallel=2))
        assert caught.value.reason == "TENSOR_PARALLEL"

    asyncio.run(main())


def test_one_that_dies_before_it_is_ready_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(engine_process.sys, "executable", "/bin/false")
        with pytest.raises(Unavailable, match=r"ended before it was ready \(exit status 1\)") as caught:
            await EngineProcess.start(MOCK)
        assert caught.value.reason == "ENGINE_DOWN"

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(12))
def test_one_whose_start_is_given_up_at_any_moment_is_ended_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    begun: list[asyncio.subprocess.Process] = []
    begin = asyncio.create_subprocess_exec

    async def noted(*command: str, **options: Any) -> asyncio.subprocess.Process:
        begun.append(await begin(*command, **options))
        return begun[-1]

    monkeypatch.setattr(engine_process.asyncio, "create_subprocess_exec", noted)

    async def main() -> None:
        starting = asyncio.ensure_future(EngineProcess.start(MOCK))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert all(process.returncode is not None for process in begun)

    asyncio.run(main())


def test_one_whose_end_is_given_up_is_killed_and_waited_for() -> None:
    async def main() -> None:
        process = await EngineProcess.start(MOCK)
        os.kill(process.pid, signal.SIGSTOP)
        closing = asyncio.ensure_future(process.close())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert process._process.returncode == -signal.SIGKILL

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(6))
def test_an_end_that_is_given_up_as_it_comes_is_given_up(turns: int) -> None:
    """`asyncio.wait_for` before Python 3.12 would return instead, and who gave up would wait for ever."""

    class Ended:
        pid, returncode = 1, 0

        async def wait(self) -> int:
            await ended
            return 0

    async def main() -> None:
        nonlocal ended
        ended = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        engine = EngineProcess(Ended(), reader, writer)  # type: ignore[arg-type]
        closing = asyncio.ensure_future(engine.close())
        for _ in range(3):
            await asyncio.sleep(0)
        ended.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        given_up = closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        assert closing.cancelled() == given_up
        theirs.close()
        await writer.wait_closed()

    ended: asyncio.Future[None]
    asyncio.run(main())


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engine_process, "CLOSE_TIMEOUT_S", 0.1)

    async def main() -> None:
        process = await EngineProcess.start(MOCK)
        os.kill(process.pid, signal.SIGSTOP)
        assert await process.close() == -signal.SIGKILL

    asyncio.run(main())
    assert "did not end within 0.1 s and is killed" in caplog.text


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, {"GOMP_SPINCOUNT": "20000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_compute_threads_spin_briefly_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], wanted: dict[str, str]
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)

    async def main() -> None:
        process = await EngineProcess.start(MOCK)
        environ = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
        assert await process.close() == 0
        assert dict(entry.split("=", 1) for entry in environ if entry.startswith(names)) == wanted

    asyncio.run(main())
