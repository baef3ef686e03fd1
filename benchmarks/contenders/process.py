"""A server's process: a session of its own, its output in a file, ended by PID with all it started. Knows no API."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.contenders.spec import Absent
from benchmarks.loadgen.processes import tree

STOP_S = 60.0
KILLED_S = 10.0
"""Until what was killed is gone from the process table."""
NUM_LAST_LINES = 5
LINE_LENGTH = 300


class ServerProcess:
    """A running command. `stop` it, or use it in a `with` block."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", prefix="tokenwire-bench-")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, env=dict(environ), cwd=cwd, stdin=subprocess.DEVNULL, stdout=self.log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self.log.close()
            raise Absent(f"{command[0]} cannot be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """Everything it wrote."""
        return Path(self.log.name).read_text(errors="replace")

    def last_words(self) -> str:
        """The last lines it wrote, in one."""
        lines = [line.strip()[:LINE_LENGTH] for line in self.said().splitlines() if line.strip()]
        return " / ".join(lines[-NUM_LAST_LINES:]) or "it said nothing"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left of its tree, wherever those processes put themselves."""
        started = tree(self.pid)
        if self.status is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in started:
            if process.is_running():  # compares creation times: never another process under an old id
                process.kill()
        psutil.wait_procs(started, timeout=KILLED_S)
        self.log.close()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class WithOthers(ServerProcess):
    """A process that takes others along when it is stopped, the last first."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], cwd: Path, others: Sequence[ServerProcess]
    ) -> None:
        super().__init__(command, environ, cwd)
        self._others = others

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            for other in reversed(self._others):
                other.stop()


def until_listens(process: ServerProcess, what: str, timeout_s: float = 20.0) -> None:
    """Wait until it says that it is listening. Raises Absent."""
    ends_s = time.monotonic() + timeout_s
    while "listening" not in process.said():
        if process.status is not None or time.monotonic() > ends_s:
            raise Absent(f"{what} did not start: {process.last_words()}")
        time.sleep(0.02)


def environment(**changed: str) -> dict[str, str]:
    """This process's environment without Tokenwire's settings, which would change what is measured, and `changed`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TOKENWIRE_") or name == "TOKENWIRE_HOME"
    }
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **changed}
