"""A long run of mixed load over the real model, in which nothing may grow.

    python -m tests.chaos.soak                    # 20 minutes
    python -m tests.chaos.soak --minutes 120      # as for the record

Two model tiers (the default model in fp32 with an adapter), two tokenizer tiers, one gateway. Requests of every kind,
with cancellations, an adapter and constraints; every text is compared with what it was at first. Writes soak.csv and
soak.svg; ends with 1 where a request was lost or wrong, or something is still held when all have ended.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.load import Load
from tests.chaos.processes import IDLE, held, scrape
from tests.chaos.soak_record import Sample, rss_slopes, write_csv, write_plot
from tests.chaos.stack import ChaosStack, Member, chaos_stack
from tests.fakes.peft_adapters import write_adapter
from tokenwire.models import home

MAX_SAMPLES = 240
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


async def soak(stack: ChaosStack, seconds: float) -> tuple[list[Sample], Load]:
    """Load for so long, sampled at most `MAX_SAMPLES` times."""
    names = {f"{member.tier} {number}": member for number, member in enumerate(stack.members)}
    load = Load(stack.target, stack.http_url, more=MORE)
    await load.learn(PROMPTS)
    running = asyncio.ensure_future(load.run(width=1))
    began_s, samples, num_before = time.monotonic(), list[Sample](), 0
    interval_s = max(2.0, seconds / MAX_SAMPLES)
    while (at_s := time.monotonic() - began_s) < seconds and not running.done():
        await asyncio.sleep(interval_s)
        took_s = [took for _, took in load.ledger.served[num_before:]]
        num_before = len(load.ledger.served)
        for name, member in names.items():
            samples.append(await asyncio.to_thread(sample, name, member, at_s, took_s))
        if stack.gateway.before is None and at_s > seconds / 10:
            stack.note()  # warm
    load.stop = True
    await asyncio.wait_for(running, 180)
    return samples, load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: %(default)g)")
    parser.add_argument("--into", type=Path, default=Path("soak"), help="folder for soak.csv and soak.svg")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes:g} is not allowed: more than 0")
    folder = home() / "models" / "smollm2-135m-instruct"
    with tempfile.TemporaryDirectory() as work:
        write_adapter(folder, Path(work) / "one", size=0.06, r=8, lora_alpha=16, seed=1)
        flags = ("--dtype", "float32", "--threads", "1", "--adapters", f"one={Path(work) / 'one'}")
        with chaos_stack(folder, Path(work), *flags) as stack:
            samples, load = asyncio.run(soak(stack, arguments.minutes * 60))
            problems = list(load.ledger.broken)
            problems += [f"a request ended with {reason}" for reason in set(load.ledger.outcomes) - {"ok", "cancelled"}]
            try:
                stack.check_nothing_is_left()
            except AssertionError as error:
                problems.append(str(error))
    arguments.into.mkdir(parents=True, exist_ok=True)
    write_csv(samples, arguments.into / "soak.csv")
    write_plot(samples, arguments.into / "soak.svg")
    print(f"{load.ledger.seen()}; the longest took {load.ledger.longest_s:.1f} s")
    for process, (found, half) in rss_slopes(samples).items():
        own = [each for each in samples if each.process == process]
        print(
            f"{process}: {own[0].rss_mb:.0f} to {own[-1].rss_mb:.0f} MB, {found:+.1f} ± {half:.1f} MB/h; "
            f"{own[-1].descriptors} descriptors, {own[-1].threads} threads at the end, under load"
        )
    for problem in problems[:10]:
        print(f"broken: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
