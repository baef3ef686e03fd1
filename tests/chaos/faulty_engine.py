"""The model tier over the mock engine, with steps that go wrong when a file says so.

As a module it is started in place of `model_svc` and of `model_svc.engine`. The file named by CHAOS_FAULT holds what
the next step shall do; whoever does it removes the file. Production code has no part of this.
"""

import contextlib
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

import model_svc.engine.__main__ as engine_main
from model_svc import __main__ as tier_main
from model_svc import engine_process
from model_svc.engine.batch import OutOfMemory, ScheduledBatch, StepOutput
from model_svc.engine.mock_runner import MockRunner
from model_svc.settings import EngineSettings
from tests.chaos.hanging import hang_when_told
from tokenwire.errors import Internal

MODULE = "tests.chaos.faulty_engine"


class FaultyRunner(MockRunner):
    """Does what the file says, once."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._file = Path(os.environ["CHAOS_FAULT"])
        self._num_raises = 0

    def launch(self, batch: ScheduledBatch) -> tuple[float, StepOutput]:
        fault = self._take()
        if fault == "raise thrice":
            self._num_raises = 3
        if self._num_raises or fault == "raise":
            self._num_raises = max(0, self._num_raises - 1)
            raise RuntimeError("the device said no")
        if fault == "out of memory":
            raise OutOfMemory("tried to allocate 1 TiB")
        if fault == "hang":
            time.sleep(3600)
        if fault == "exit":
            os._exit(7)
        done_s, output = super().launch(batch)
        if fault == "nan":
            token_ids = (None, *output.token_ids[1:])
            error = Internal("the model's scores are not finite", reason="SEQUENCE_FAILED")
            output = StepOutput(token_ids, errors={0: error}, vectors=output.vectors)
        return done_s, output

    def _take(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            mine = self._file.with_suffix(f".{os.getpid()}")
            self._file.rename(mine)
            fault = mine.read_text()
            mine.unlink()
            return fault
        return ""


def build_runner(settings: Any) -> FaultyRunner:
    """What the engine process loads."""
    return FaultyRunner(settings)


if __name__ == "__main__":
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        # libfaketime takes the monotonic times until which Python sleeps for times of the wall clock.
        time.sleep = lambda seconds: select.select([], [], [], seconds)  # type: ignore[assignment]
    if len(sys.argv) == 2 and sys.argv[1].isdigit():  # the socket to the gRPC process
        engine_main.RUNNERS["mock"] = MODULE
        engine_main.main()
    else:
        engine_process.ENGINE_MODULE = MODULE
        hang_when_told()
        tier_main.main()
