"""Every process of every tier is told to stop in turn and started again on its port, under load: nothing is lost.

Two gateways, two tokenizer tiers, two model tiers with the mock engine, and clients as they are told to be: they
connect to whichever gateway lets them in, and send nothing twice.
"""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tier_processes import TierProcesses
from tests.fakes.load import Load
from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports

pytestmark = pytest.mark.model

DRAIN_S = 30


@dataclass
class Member:
    """One process, its ports and how it is started."""

    module: str
    port: int
    flags: tuple[str, ...]
    process: Any = None


class RollingStack:
    """Two processes of each tier. Each can be replaced by another on the same ports."""

    def __init__(self, folder: Path, tiers: TierProcesses, workers: int) -> None:
        """`workers`: of each gateway and each tokenizer tier."""
        ports = free_ports(8)
        models, tokenizers, gateways, self.http_ports = (ports[part : part + 2] for part in (0, 2, 4, 6))
        self._tiers = tiers
        self._num_above = 2 * workers
        shared = ("--workers", str(workers))
        self.members = [
            *(Member("model_svc", port, ("--model", str(folder), "--engine", "mock", "--mock-step-ms", "10"))
              for port in models),
            *(Member("tokenizer_svc", port, ("--model", str(folder), "--model-targets", addresses(models), *shared))
              for port in tokenizers),
            *(Member("gateway", port, ("--http-port", str(http), "--tokenizer-targets", addresses(tokenizers), *shared))
              for port, http in zip(gateways, self.http_ports, strict=True)),
        ]  # fmt: skip
        self.gateways = gateways
        for member in self.members:
            self.start(member)
        for member in self.members:
            self._until_serving(member)
        for member in self.members[:4]:
            self._until_found(member, self._num_above)

    def start(self, member: Member) -> None:
        common = ("--port", str(member.port), "--metrics-port", "0", "--drain-timeout-s", str(DRAIN_S))
        member.process = self._tiers.start(member.module, *common, *member.flags)

    def replace(self, member: Member) -> float:
        """SIGTERM, and another in its place, which those above have found. Returns how long the first took to end."""
        num_found = self._num_found(member)
        began_s = time.monotonic()
        member.process.send_signal(signal.SIGTERM)
        assert member.process.wait(DRAIN_S + 10) == 0, self._tiers.logs()
        took_s = time.monotonic() - began_s
        self.start(member)
        self._until_serving(member)
        if member.module != "gateway":
            self._until_found(member, num_found + self._num_above)
        return took_s

    def _until_serving(self, member: Member) -> None:
        wait_until_serving(f"127.0.0.1:{member.port}", member.process, self._tiers.logs)

    def _until_found(self, member: Member, number: int) -> None:
        wait_for(lambda: self._num_found(member) >= number, told=self._tiers.logs)

    def _num_found(self, member: Member) -> int:
        """How often it was connected to, by the processes above it."""
        address = f"127.0.0.1:{member.port}"
        logs = self._tiers.logs()
        return logs.count(f"model tier ready  target={address}") + logs.count(f"tokenizer tier {address} is connected")


def addresses(ports: list[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


@contextmanager
def rolling_stack(folder: Path, logs: Path, workers: int) -> Iterator[RollingStack]:
    with TierProcesses(logs) as tiers:
        yield RollingStack(folder, tiers, workers)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.extended)])
def test_a_rolling_restart_of_every_tier_loses_no_request(model_folder: Path, tmp_path: Path, workers: int) -> None:
    async def main(stack: RollingStack) -> None:
        load = Load([f"ipv4:{addresses(ports)}" for ports in (stack.gateways, stack.gateways[::-1])],
                    [f"http://127.0.0.1:{port}" for port in stack.http_ports])  # fmt: skip
        await load.learn()
        running = asyncio.ensure_future(load.run(width=1))
        took: list[str] = []
        for member in stack.members:
            took_s = await asyncio.to_thread(stack.replace, member)
            took.append(f"{member.module} {took_s:.1f}")
            await load.until_served(20, running)
        load.stop = True
        async with asyncio.timeout(60):
            await running
        ledger = load.ledger
        assert not ledger.broken and set(ledger.outcomes) == {"ok", "cancelled"}, (ledger.broken[:5], ledger.seen())
        assert len(ledger.ended) == 8 and ledger.num_open == 0, ledger.ended
        print(f"\n{dict(ledger.ended)}; {ledger.num_not_let_in} connections not let in")
        print(f"seconds from SIGTERM to exit: {', '.join(took)}")

    with rolling_stack(model_folder, tmp_path, workers) as stack:
        asyncio.run(main(stack))
