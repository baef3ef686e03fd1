"""Ten times as many requests as the engine can serve: what becomes of those it can, and how the others hear no.

    python -m benchmarks.overload                  # a minute
    python -m benchmarks.overload --seconds 5      # a look

The real tiers over the mock engine, whose capacity is measured first, by a closed loop as wide as its batch. Then
requests arrive at random (Poisson), so many times as often. Writes benchmarks/results/overload.json and .md.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison.results import page, write
from benchmarks.loadgen.arrivals import poisson
from benchmarks.loadgen.figures import percentile
from benchmarks.loadgen.http_stream import BadAnswer, ConnectionPool
from benchmarks.loadgen.loops import in_loop
from benchmarks.machine import machine, wait_until_quiet
from benchmarks.mock_stack import MockStack, mock_stack
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown

TITLE = "Overload"
BATCH = 16
ROOM = 2 * BATCH
"""Outputs that the gateway lets in at once: a batch that runs, and one that waits for it."""
STEP_MS = 20.0
OUTPUT_TOKENS = 32
SAMPLE_S = 0.5
BODY = json.dumps({"prompt": "hello", "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0}).encode()


@dataclass
class Seen:
    """What came of the requests."""

    served_at_s: list[float] = field(default_factory=list)
    """When each answer had ended, on `perf_counter`."""
    refused_s: list[float] = field(default_factory=list)
    """How long each refusal took."""
    others: Counter[str] = field(default_factory=Counter)
    open_outputs: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)


async def ask(pool: ConnectionPool, seen: Seen) -> None:
    """One request, and what becomes of it."""
    sent_s = time.perf_counter()
    try:
        status = await pool.post("/v1/completions", BODY, lambda _: None)
    except (BadAnswer, OSError) as error:
        seen.others[type(error).__name__] += 1
        return
    now_s = time.perf_counter()
    if status == 200:
        seen.served_at_s.append(now_s)
    elif status == 429:
        seen.refused_s.append(now_s - sent_s)
    else:
        seen.others[f"status {status}"] += 1


async def capacity(pool: ConnectionPool, seconds: float) -> float:
    """Requests a second with a full batch."""
    seen, ends_s = Seen(), time.perf_counter() + seconds

    async def loop() -> None:
        while time.perf_counter() < ends_s:
            await ask(pool, seen)

    began_s = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(BATCH)))
    return len(seen.served_at_s) / (max(seen.served_at_s) - began_s)


async def watch(stack: MockStack, seen: Seen) -> None:
    """Look at the gateway's room and at everybody's memory, again and again."""
    while True:
        seen.open_outputs.append(await asyncio.to_thread(stack.metric, "tokenwire_gateway_open_streams"))
        seen.rss_bytes.append(await asyncio.to_thread(stack.rss_bytes))
        await asyncio.sleep(SAMPLE_S)


async def overload(stack: MockStack, pool: ConnectionPool, rate: float, seconds: float) -> tuple[Seen, float]:
    """So many requests a second for so long, and how many answers a second ended meanwhile."""
    seen, tasks = Seen(), set[asyncio.Task[None]]()
    watcher = asyncio.create_task(watch(stack, seen))
    began_s = time.perf_counter()
    for due_s in itertools.takewhile(lambda at_s: at_s < seconds, poisson(rate, int(2 * rate * seconds) + 10, seed=0)):
        await asyncio.sleep(max(0.0, began_s + due_s - time.perf_counter()))
        task = asyncio.create_task(ask(pool, seen))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    ended_s = time.perf_counter()
    in_time = sum(at_s <= ended_s for at_s in seen.served_at_s)
    await asyncio.gather(*tasks)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    return seen, in_time / (ended_s - began_s)


async def measured(stack: MockStack, factor: int, seconds: float) -> dict[str, Any]:
    """The figures of a whole run."""
    pool = ConnectionPool(stack.host, stack.port)
    try:
        full = await capacity(pool, max(3.0, seconds / 4))
        seen, served = await overload(stack, pool, factor * full, seconds)
    finally:
        pool.close()
    third = max(1, len(seen.rss_bytes) // 3)
    return {
        "capacity_requests_per_s": round(full, 2),
        "offered_requests_per_s": round(factor * full, 1),
        "served_requests_per_s": round(served, 2),
        "goodput_share": round(served / full, 3),
        "refused": len(seen.refused_s),
        "refused_ms_p50": round(1000 * percentile(seen.refused_s, 0.5), 1) if seen.refused_s else None,
        "refused_ms_p99": round(1000 * percentile(seen.refused_s, 0.99), 1) if seen.refused_s else None,
        "other_outcomes": dict(seen.others),
        "most_open_outputs": max(seen.open_outputs, default=0.0),
        "room": ROOM,
        "rss_mib_first_third": round(sum(seen.rss_bytes[:third]) / third / 2**20, 1),
        "rss_mib_last_third": round(sum(seen.rss_bytes[-third:]) / third / 2**20, 1),
    }


def run(factor: int, seconds: float) -> dict[str, Any]:
    """Start the stack, measure, stop it."""
    where = machine()
    with mock_stack(
        model_mock_step_ms=STEP_MS, model_mock_prefill_tokens_per_s=1e6, model_max_batch_size=BATCH,
        gateway_max_concurrent_requests=ROOM,
    ) as stack:  # fmt: skip
        found = in_loop(measured(stack, factor, seconds))
    return {
        "title": TITLE, "date": time.strftime("%Y-%m-%d"), "machine": where, "quiet": where["quiet"],
        "factor": factor, "seconds": seconds, "figures": found,
    }  # fmt: skip


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    found = record["figures"]
    rows = [[name.replace("_", " "), str(value)] for name, value in found.items()]
    about = (
        f"{record['factor']} times what the engine serves, for {record['seconds']:g} s: requests of one token and "
        f"{OUTPUT_TOKENS} output tokens, {STEP_MS:g} ms a step, {BATCH} sequences a step, {ROOM} let in at once. "
        "Client and tiers share the machine. Memory is that of all tiers together, in means."
    )
    return page(TITLE, record, about, markdown(["", ""], rows))


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a request ended neither served nor refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--factor", type=one_or_more, default=10, help="times its capacity (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    record = run(given.factor, given.seconds)
    text = text_of(record)
    print(text)
    print(f"\nwritten to {write(record, text, 'overload', given.out)}")
    return int(bool(record["figures"]["other_outcomes"]))


if __name__ == "__main__":
    sys.exit(main())
