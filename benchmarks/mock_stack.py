"""`tokenwire up` with the mock engine, for benchmarks of what stands above it: started, watched, stopped."""

import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.contenders.process import ServerProcess, environment
from benchmarks.contenders.spec import Absent
from benchmarks.loadgen.processes import cpu_s, rss_bytes, tree
from benchmarks.machine import ROOT
from tokenwire.cli.tiers import free_ports

START_S = 90.0


@dataclass(frozen=True)
class MockStack:
    """A running stack."""

    host: str
    port: int
    """HTTP."""
    grpc_port: int
    process: ServerProcess

    def rss_bytes(self) -> int:
        """Of all tiers together."""
        return rss_bytes(self.process.pid)

    def cpu_s(self, tier: str) -> float:
        """CPU seconds of one tier so far, by the name of its package."""
        return cpu_s(self._pid(tier))

    def tier_rss_bytes(self, tier: str) -> int:
        """Resident memory of one tier, by the name of its package."""
        return rss_bytes(self._pid(tier))

    def _pid(self, tier: str) -> int:
        (pid,) = (each.pid for each in tree(self.process.pid) if tier in each.cmdline()[2:5])
        return pid

    def metric(self, name: str) -> float:
        """A gauge of the gateway's, without labels."""
        text = fetched(f"http://{self.host}:{self.port}/metrics")
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


@contextmanager
def mock_stack(**settings: str | int | float) -> Iterator[MockStack]:
    """A stack with these settings, each named `gateway_…`, `tokenizer_…` or `model_…`. Raises Absent."""
    gateway, http, tokenizer, model = free_ports(4)
    ports = {"--port": gateway, "--http-port": http, "--tokenizer-port": tokenizer, "--model-port": model}
    ports |= {f"--{tier}-metrics-port": 0 for tier in ("gateway", "tokenizer", "model")}
    flags = [word for flag, port in ports.items() for word in (flag, str(port))]
    command = [sys.executable, "-m", "tokenwire.cli.main", "up", "--engine", "mock", *flags]
    environ = environment(
        TOKENWIRE_LOG="warning", **{f"TOKENWIRE_{name.upper()}": str(value) for name, value in settings.items()}
    )
    with ServerProcess(command, environ, ROOT) as process:
        stack = MockStack("127.0.0.1", http, gateway, process)
        until_ready(stack)
        yield stack


def until_ready(stack: MockStack) -> None:
    """Wait until it would answer. Raises Absent."""
    ends_s = time.monotonic() + START_S
    while True:
        try:
            fetched(f"http://{stack.host}:{stack.port}/readyz")
            return
        except OSError:
            if stack.process.status is not None or time.monotonic() > ends_s:
                raise Absent(f"the stack did not start: {stack.process.last_words()}") from None
            time.sleep(0.1)


def fetched(url: str) -> str:
    """The body of a GET. Raises OSError."""
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text
