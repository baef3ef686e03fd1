"""Every tier as a process of its own, with several model tiers that a test may kill."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports

COMMON = ("--metrics-port", "0", "--drain-timeout-s", "3")


@dataclass(frozen=True)
class ReplicatedStack:
    target: str
    """The gateway's."""
    models: list[subprocess.Popen[bytes]]
    log: Path
    """Of the tokenizer tier."""

    def num_logged(self, message: str) -> int:
        return self.log.read_text().count(message)


@contextmanager
def replicated_stack(folder: Path, *flags: str, num_models: int = 2) -> Iterator[ReplicatedStack]:
    """`flags` are the model tiers'."""
    gateway, http, tokenizer, *models = free_ports(3 + num_models)
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tokenizer.log"

        def start(module: str, *command: str, into: Path | None = None) -> subprocess.Popen[bytes]:
            output = stack.enter_context(into.open("wb")) if into is not None else subprocess.DEVNULL
            process = subprocess.Popen(
                [sys.executable, "-m", module, *COMMON, *command], stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(end, process)
            return process

        processes = [start("model_svc", "--model", str(folder), "--port", str(port), *flags) for port in models]
        targets = ",".join(f"127.0.0.1:{port}" for port in models)
        start(
            "tokenizer_svc", "--model", str(folder), "--port", str(tokenizer), "--model-targets", targets, into=log
        )  # fmt: skip
        start(
            "gateway", "--port", str(gateway), "--http-port", str(http), "--tokenizer-targets", f"127.0.0.1:{tokenizer}"
        )  # fmt: skip
        for port in (*models, gateway):
            wait_until_serving(f"127.0.0.1:{port}")
        wait_for(lambda: log.read_text().count("model tier ready") == num_models)
        yield ReplicatedStack(f"127.0.0.1:{gateway}", processes, log)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
