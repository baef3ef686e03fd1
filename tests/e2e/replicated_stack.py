"""Every tier as a process of its own, with several model tiers that a test may kill."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.tier_processes import TierProcesses
from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports

METRICS = ("--metrics-port", "0")


@dataclass(frozen=True)
class ReplicatedStack:
    target: str
    """The gateway's."""
    models: list[subprocess.Popen[bytes]]
    tiers: TierProcesses

    def num_logged(self, message: str) -> int:
        return self.tiers.logs().count(message)


@contextmanager
def replicated_stack(folder: Path, *flags: str, num_models: int = 2) -> Iterator[ReplicatedStack]:
    """`flags` are the model tiers'."""
    gateway, http, tokenizer, *models = map(str, free_ports(3 + num_models))
    targets = [f"127.0.0.1:{port}" for port in models]
    with tempfile.TemporaryDirectory() as logs, TierProcesses(Path(logs)) as tiers:
        processes = [
            tiers.start("model_svc", *METRICS, "--model", str(folder), "--port", port, *flags) for port in models
        ]
        tiers.start("tokenizer_svc", *METRICS, "--model", str(folder), "--port", tokenizer,
                    "--model-targets", ",".join(targets))  # fmt: skip
        tiers.start("gateway", *METRICS, "--port", gateway, "--http-port", http,
                    "--tokenizer-targets", f"127.0.0.1:{tokenizer}")  # fmt: skip
        stack = ReplicatedStack(f"127.0.0.1:{gateway}", processes, tiers)
        for target in (*targets, stack.target):
            wait_until_serving(target, told=tiers.logs)
        wait_for(lambda: stack.num_logged("model tier ready") == num_models, told=tiers.logs)
        yield stack
