"""A long run of mixed load over the real model, in which memory, descriptors, threads and latencies are watched.

    python -m tests.chaos.soak                    # 20 minutes
    python -m tests.chaos.soak --minutes 120      # as for the record

Two model tiers (the default model in fp32 with an adapter), two tokenizer tiers, one gateway. Requests of every kind,
with cancellations, an adapter and constraints; every text is compared with what it was at first. Writes soak.csv and
soak.svg; ends with 1 where a request was lost or wrong, where something is still held when all have ended, or where
memory grew too fast: that is judged where an hour is left after the warm-up, the first quarter of the run.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.chaos.processes import IDLE, held, scrape
from tests.chaos.soak_record import Sample, SampleFile, growths, write_plot
from tests.chaos.stack import ChaosStack, Member, chaos_stack
from tests.fakes.load import Ledger, Load
from tests.fakes.peft_adapters import write_adapter
from tokenwire.models import home
from tokenwire.tasks import cancel_and_wait

MAX_SAMPLES = 240
WARM_SHARE = 0.25
"""Of the run, from its beginning: while caches and pools fill."""
MORE = (
    {"adapter": "one", "max_tokens": 12, "ignore_eos": True, "temperature": 0.0},
    {"regex": "( [a-z]{1,9}){5}[.]", "max_tokens": 40, "temperature": 0.0},
    {"json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
                     "additionalProperties": False}, "max_tokens": 24, "temperature": 0.0},
)  # fmt: skip
"""With an adapter, and with constraints."""
PROMPTS = 8


def sample(name: str, member: Member, at_s: float, took_s: list[float]) -> Sample:
    now, metrics = held(member.pid), scrape(member.metrics_port)
    took_ms = sorted(1000 * each for each in took_s) or [0.0]
    return Sample(
        at_s=at_s,
        process=name,
        rss_mb=now.rss_bytes / 1e6,
        descriptors=now.descriptors,
        threads=now.threads,
        open_requests=metrics[IDLE[member.tier][0]],
        kv_used_blocks=metrics.get("kv_used_blocks", 0.0),
        p50_ms=took_ms[len(took_ms) // 2],
        p99_ms=took_ms[int(len(took_ms) * 0.99)],
        num_served=len(took_s),
    )


async def soak(stack: ChaosStack, seconds: float, file: SampleFile) -> tuple[Ledger, list[str]]:
    """Load for so long, sampled at most `MAX_SAMPLES` times. Returns what became of it, and what could not be seen."""
    names = {f"{member.tier} {number}": member for number, member in enumerate(stack.members)}
    load = Load([stack.target], [stack.http_url], more=MORE)
    await load.learn(PROMPTS)
    running = asyncio.ensure_future(load.run(width=1))
    began_s, num_before, unseen = time.monotonic(), 0, list[str]()
    interval_s = max(2.0, seconds / MAX_SAMPLES)
    while (at_s := time.monotonic() - began_s) < seconds and not running.done():
        await asyncio.sleep(interval_s)
        took_s = [took for _, took in load.ledger.served[num_before:]]
        num_before = len(load.ledger.served)
        for name, member in names.items():
            try:
                file.add(await asyncio.to_thread(sample, name, member, at_s, took_s))
            except (OSError, psutil.Error) as error:
                unseen.append(f"{name} was not to be seen after {at_s:.0f} s: {error!r}")
        if stack.gateway.before is None and at_s > WARM_SHARE * seconds:
            stack.note()
    load.stop = True
    await asyncio.wait({running}, timeout=180)
    if running.done():
        running.result()
    else:
        await cancel_and_wait(running)
    return load.ledger, unseen


def problems_of(stack: ChaosStack, ledger: Ledger) -> Iterator[str]:
    """Promises that were not kept."""
    yield from ledger.broken
    yield from (f"a request ended with {reason}" for reason in set(ledger.outcomes) - {"ok", "cancelled"})
    if ledger.num_open:
        yield f"{ledger.num_open} requests never ended"
    try:
        stack.check_nothing_is_left()
    except AssertionError as error:
        yield str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: %(default)g)")
    parser.add_argument("--into", type=Path, default=Path("soak"), help="folder for soak.csv and soak.svg")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes:g} is not allowed: more than 0")
    folder = home() / "models" / "smollm2-135m-instruct"
    seconds = arguments.minutes * 60
    arguments.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, SampleFile(arguments.into / "soak.csv") as file:
        write_adapter(folder, Path(work) / "one", size=0.06, r=8, lora_alpha=16, seed=1)
        flags = ("--dtype", "float32", "--threads", "1", "--adapters", f"one={Path(work) / 'one'}")
        try:
            with chaos_stack(folder, Path(work), *flags) as stack:
                ledger, problems = asyncio.run(soak(stack, seconds, file))
                problems += problems_of(stack, ledger)
        finally:
            write_plot(file.samples, arguments.into / "soak.svg")
    print(f"{ledger.seen()}; the longest took {ledger.longest_s:.1f} s")
    for growth in growths(file.samples, WARM_SHARE * seconds):
        print(growth)
        if growth.too_fast:
            problems.append(f"the memory grows too fast: {growth}")
    for problem in problems[:10]:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
