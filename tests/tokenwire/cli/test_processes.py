"""The group of tiers: ready, dying, draining in order, stubborn, and left behind by a killed parent."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenwire.addresses import free_ports
from tokenwire.cli.processes import MAX_LINE_BYTES, TierGroup
from tokenwire.cli.tiers import Tier
from tokenwire.errors import Unavailable

ROOT = Path(__file__).parents[3]
NAMES = ("gateway", "tokenizer", "model")


def fake_tiers(extra: dict[str, tuple[str, ...]] | None = None) -> list[Tier]:
    ports = free_ports(len(NAMES))
    return [
        Tier(name, "tests.fakes.tier", f"127.0.0.1:{port}", ("--port", str(port), *(extra or {}).get(name, ())))
        for name, port in zip(NAMES, ports, strict=True)
    ]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


class Shown:
    """Collects output, and finds the children that the fakes say they started."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, tier: str, line: str) -> None:
        self.lines.append((tier, line))

    def children(self) -> list[int]:
        return [int(match[1]) for _, line in self.lines if (match := re.fullmatch(r"child (\d+)", line))]


def test_ready_then_drained_from_the_edge_inwards() -> None:
    shown, ready, stopped = Shown(), set(), []

    async def main() -> None:
        async with TierGroup(fake_tiers(), shown, 10) as group:
            await group.wait_ready(lambda tier, seconds: ready.add(tier.name))
            assert len(shown.children()) == 3
            await group.drain(lambda tier, in_time: stopped.append((tier.name, in_time)))

    asyncio.run(main())
    assert ready == set(NAMES)
    assert stopped == [("gateway", True), ("tokenizer", True), ("model", True)]
    assert [tier for tier, line in shown.lines if line == "drained"] == list(NAMES)
    wait_until(lambda: not any(map(alive, shown.children())))


def test_a_tier_that_dies_at_start_ends_the_group_with_its_last_words() -> None:
    shown = Shown()

    async def main() -> None:
        tiers = fake_tiers({"model": ("--dies", "3", "--says", "no such model")})
        async with TierGroup(tiers, shown, 10) as group:
            await group.wait_ready(lambda tier, seconds: None)

    with pytest.raises(Unavailable, match="the model tier ended with status 3") as caught:
        asyncio.run(main())
    assert "no such model" in caught.value.message
    wait_until(lambda: not any(map(alive, shown.children())))


def test_a_tier_that_is_killed_later_ends_the_group() -> None:
    shown = Shown()

    async def main() -> None:
        async with TierGroup(fake_tiers(), shown, 10) as group:
            await group.wait_ready(lambda tier, seconds: None)
            process = group.processes[1]._process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            await group.wait_died()

    with pytest.raises(Unavailable, match="the tokenizer tier was killed by SIGKILL"):
        asyncio.run(main())
    wait_until(lambda: not any(map(alive, shown.children())))


def test_a_tier_that_does_not_drain_is_killed_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.cli.processes.KILL_AFTER_S", 0.3)
    shown, stopped = Shown(), []

    async def main() -> None:
        async with TierGroup(fake_tiers({"tokenizer": ("--stubborn",)}), shown, 0) as group:
            await group.wait_ready(lambda tier, seconds: None)
            await group.drain(lambda tier, in_time: stopped.append((tier.name, in_time)))

    asyncio.run(main())
    assert ("tokenizer", False) in stopped
    wait_until(lambda: not any(map(alive, shown.children())))


PARENT = """
import asyncio, sys
from tests.tokenwire.cli import test_processes as t
from tokenwire.cli.processes import MAX_LINE_BYTES, TierGroup

async def main():
    tiers = t.fake_tiers({"model": ("--stubborn",)})
    async with TierGroup(tiers, lambda tier, line: print(line, flush=True), -4) as group:
        await group.wait_ready(lambda tier, seconds: None)
        print("ready", *(p._process.pid for p in group.processes), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_when_the_parent_is_killed_nothing_lives_on() -> None:
    """Not even a tier that ignores SIGTERM; its grace is one second here."""
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids: list[int] = []
        for line in parent.stdout:
            word, *numbers = line.split() or [""]
            if word in ("child", "ready"):
                pids += map(int, numbers)
            if word == "ready":
                break
        assert len(pids) == 6
        assert all(map(alive, pids))
        parent.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_long_output_is_one_line_that_was_cut_and_stalls_nobody() -> None:
    shown = Shown()

    async def main() -> None:
        tiers = fake_tiers({"model": ("--says", "x" * 100_000, "--dies", "1")})
        async with TierGroup(tiers, shown, 10) as group:
            await group.wait_died()

    with pytest.raises(Unavailable, match="model tier ended with status 1"):
        asyncio.run(main())
    (said,) = [line for tier, line in shown.lines if tier == "model" and "x" in line]
    assert 60_000 < said.count("x") <= MAX_LINE_BYTES and re.search(r"x … \(\d+ bytes more\)$", said)
