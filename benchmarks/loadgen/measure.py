"""One server under some loads, one after the other: warm-up, run, figures. Starts no server and writes no file."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.loadgen.clients import client_of
from benchmarks.loadgen.figures import figures
from benchmarks.loadgen.loops import in_loop
from benchmarks.loadgen.processes import TierMeter
from benchmarks.loadgen.progress import Progress
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.runs import Runner
from benchmarks.loadgen.work import Prompts, Work

BUSY = 0.7
"""A client that uses this much of one core may be what is measured."""
LATE_MS = 20.0
OTHERS = 0.1
"""Of the machine: with more of it used by processes that are not measured, figures say little."""
OTHERS_SAID = "other processes used"


@dataclass(frozen=True)
class Load:
    """One run: a closed loop of `concurrency` requests, or an open one of `rate` requests a second."""

    concurrency: int = 0
    rate: float = 0.0
    num_requests: int = 0
    """0: four times the concurrency, at least 8; for open loops what comes in 20 seconds."""
    warmup: int = -1
    """Requests before it that do not count; -1: as many as run side by side, at least 2."""

    @property
    def label(self) -> str:
        return f"c={self.concurrency}" if self.concurrency else f"{self.rate:g}/s"

    @property
    def requests(self) -> int:
        if self.num_requests:
            return self.num_requests
        return max(8, 4 * self.concurrency) if self.concurrency else max(8, round(20 * self.rate))

    @property
    def warmups(self) -> int:
        return self.warmup if self.warmup >= 0 else max(2, self.concurrency)


@dataclass(frozen=True)
class Target:
    """A running server, as the client sees it."""

    api: str
    address: str
    model: str
    dialect: str = "openai"
    tiers: Mapping[str, int] = field(default_factory=dict)
    """Names and process ids whose CPU time and memory are read."""


def run(target: Target, work: Work, loads: Sequence[Load], *, seed: int = 0, say: str = "") -> list[dict[str, Any]]:
    """Measure each load; one dict of figures each. Raises what connecting raises; failed requests are counted.

    `seed` chooses the prompts and the arrivals: give each round its own, so that none is asked twice.
    """
    return in_loop(measure(target, work, loads, seed=seed, say=say))


async def measure(
    target: Target, work: Work, loads: Sequence[Load], *, seed: int = 0, say: str = ""
) -> list[dict[str, Any]]:
    """As `run`, in a running loop."""
    prompts = Prompts(work)
    client = client_of(target.api, target.address, target.model, work, target.dialect)
    await client.open()
    try:
        tiers = dict(target.tiers) or dict(getattr(client, "tiers", {}))
        runner = Runner(client, prompts, first_number=seed * 1_000_000)
        return [await _measure_load(runner, tiers, load, seed, say) for load in loads]
    finally:
        await client.close()


async def _measure_load(runner: Runner, tiers: dict[str, int], load: Load, seed: int, say: str) -> dict[str, Any]:
    work = runner.prompts.work
    if load.warmups:
        with Progress(f"{say}warm-up for {load.label}", load.warmups) as progress:
            await runner.closed(load.concurrency or load.warmups, load.warmups, progress)
    with Progress(f"{say}{load.label}", load.requests) as progress, TierMeter(tiers) as meter:
        cpu_s, began_s, busy = time.process_time(), time.perf_counter(), busy_s()
        records = await send(runner, load, seed, progress)
        wall_s = time.perf_counter() - began_s
        cpu_s, busy = time.process_time() - cpu_s, busy_s() - busy
    found = figures(records, work.output_tokens)
    tokens = found["output_tokens"]
    client = {
        "cpu_s": round(cpu_s, 3), "share_of_a_core": round(cpu_s / wall_s, 4),
        "cpu_s_per_1000_tokens": round(1000 * cpu_s / tokens, 4) if tokens else None,
    }  # fmt: skip
    measured = meter.figures(tokens)
    others_s = busy - cpu_s - sum(tier["cpu_s"] for tier in measured.values())
    others = round(max(0.0, others_s) / wall_s / (psutil.cpu_count() or 1), 4) if measured else None
    shape = {"concurrency": load.concurrency} if load.concurrency else {"rate": load.rate}
    return {
        "load": load.label, **shape, **found, "tiers": measured, "client": client, "others_share": others,
        "warnings": warnings_of(found, client, others),
    }  # fmt: skip


async def send(runner: Runner, load: Load, seed: int, progress: Progress) -> list[Record]:
    """The requests of one load."""
    if load.concurrency:
        return await runner.closed(load.concurrency, load.requests, progress)
    return await runner.open(load.rate, load.requests, seed, progress)


def busy_s() -> float:
    """CPU seconds that all processes of this machine have used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def warnings_of(found: Mapping[str, Any], client: Mapping[str, Any], others: float | None) -> list[str]:
    """What makes these figures doubtful."""
    warnings: list[str] = []
    if found["failures"]:
        warnings.append(f"{found['failures']} of {found['requests']} requests failed and do not count")
    if client["share_of_a_core"] > BUSY:
        warnings.append(f"the client used {client['share_of_a_core']:.0%} of a core: it may be the limit")
    if others is not None and others > OTHERS:
        warnings.append(f"{OTHERS_SAID} {others:.0%} of the machine")
    late = found["client_late_ms"]
    if late and late["p99"] > LATE_MS:
        warnings.append(f"the client sent late (p99 {late['p99']:.0f} ms); latencies count from when a request was due")
    return warnings
