"""Tiers as processes of their own, started one by one, for tests that put something between them."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path


class TierProcesses:
    """Starts tiers; all end with the block."""

    def __init__(self, folder: Path, log: Path | None = None) -> None:
        """`folder`: for their logs. `log`: one file that all write to instead."""
        self.folder = folder
        self._log = log
        self._stack = ExitStack()
        self._number = 0

    def __enter__(self) -> "TierProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self, module: str, *flags: str, drain_timeout_s: float | None = 3, **environ: str
    ) -> subprocess.Popen[bytes]:
        """`python -m module flags`. `drain_timeout_s`: None: as the variables say."""
        self._number += 1
        path = self._log or self.folder / f"{self._number}-{module}.log"
        log = self._stack.enter_context(path.open("wb"))
        drain = () if drain_timeout_s is None else ("--drain-timeout-s", str(drain_timeout_s))
        command = [sys.executable, "-m", module, *drain, *flags]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environ})
        self._stack.callback(end, process)
        return process

    def logs(self) -> str:
        """What all said."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
