"""Prompts of 220 KB, fifty at a time: what they do to the streams beside them.

    python -m benchmarks.long_prompts                 # a minute
    python -m benchmarks.long_prompts --seconds 5     # a look

The real tiers over the mock engine, which computes prompts at once, so that what is seen is the way there: bodies,
JSON, protobuf, the tokenizer. A few small streams are read for a while alone, then beside the long prompts; the figure
is the time between a stream's tokens. Writes benchmarks/results/long-prompts.json and .md.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison.results import page, write
from benchmarks.loadgen.figures import percentile
from benchmarks.loadgen.http_completions import Events
from benchmarks.loadgen.http_stream import ConnectionPool
from benchmarks.loadgen.loops import in_loop
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import WORDS
from benchmarks.machine import machine, wait_until_quiet
from benchmarks.mock_stack import MockStack, mock_stack
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown

TITLE = "Long prompts beside small streams"
STEP_MS = 20.0
NUM_STREAMS = 8
STREAM_TOKENS = 64
LONG_OUTPUT_TOKENS = 4
BEFORE_S = 2.0
"""Of the long prompts, before the streams beside them count."""


def long_text(size: int, number: int) -> str:
    """Random words of about this many bytes; no two alike."""
    rng, words, length = random.Random(number), [], 0
    while length < size:
        words.append(rng.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)[:size]


async def streams(pool: ConnectionPool, seconds: float) -> list[float]:
    """Read small streams for so long; the seconds between their tokens."""
    gaps, ends_s = list[float](), time.perf_counter() + seconds
    asked = {"prompt": "hello", "max_tokens": STREAM_TOKENS, "ignore_eos": True, "temperature": 0, "stream": True}
    body = json.dumps(asked).encode()

    async def one() -> None:
        while time.perf_counter() < ends_s:
            record = Record(0, time.perf_counter())
            status = await pool.post("/v1/completions", body, Events(record).on_body)
            if status != 200 or record.error:
                raise RuntimeError(f"a small stream ended with status {status} {record.error}")
            gaps.extend(record.gaps_s)

    await asyncio.gather(*(one() for _ in range(NUM_STREAMS)))
    return gaps


async def long_prompts(pool: ConnectionPool, bodies: Sequence[bytes], concurrency: int, seen: list[int]) -> None:
    """Send long prompts, so many at a time, until cancelled; notes each status."""

    async def one(number: int) -> None:
        while True:
            seen.append(await pool.post("/v1/completions", bodies[number % len(bodies)], lambda _: None))
            number += concurrency

    await asyncio.gather(*(one(number) for number in range(concurrency)))


async def measured(stack: MockStack, size: int, concurrency: int, seconds: float) -> dict[str, Any]:
    """The figures of a whole run."""
    others = {"max_tokens": LONG_OUTPUT_TOKENS, "ignore_eos": True}
    bodies = [json.dumps({"prompt": long_text(size, number), **others}).encode() for number in range(2 * concurrency)]
    small, large = ConnectionPool(stack.host, stack.port), ConnectionPool(stack.host, stack.port)
    seen: list[int] = []
    try:
        await streams(small, 2.0)
        alone = await streams(small, seconds)
        beside = asyncio.create_task(long_prompts(large, bodies, concurrency, seen))
        await asyncio.sleep(BEFORE_S)
        num_before, began_s = len(seen), time.perf_counter()
        disturbed = await streams(small, seconds)
        rate = (len(seen) - num_before) / (time.perf_counter() - began_s)
        if beside.done():
            beside.result()
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
    finally:
        small.close()
        large.close()
    figures = {
        name: {f"p{round(100 * share)}": round(1000 * percentile(gaps, share), 2) for share in (0.5, 0.9, 0.99)}
        for name, gaps in (("alone", alone), ("beside", disturbed))
    }
    return {
        **figures,
        "p99_ratio": round(figures["beside"]["p99"] / figures["alone"]["p99"], 2),
        "long_prompts_per_s": round(rate, 2),
        "statuses": {str(status): seen.count(status) for status in sorted(set(seen))},
    }


def run(size: int, concurrency: int, seconds: float) -> dict[str, Any]:
    """Start the stack, measure, stop it."""
    where = machine()
    with mock_stack(
        model_mock_step_ms=STEP_MS, model_mock_prefill_tokens_per_s=1e12, model_mock_max_context_tokens=131072,
        model_mock_kv_blocks=524288, model_max_step_tokens=8192, model_max_queued_tokens=100_000_000,
    ) as stack:  # fmt: skip
        found = in_loop(measured(stack, size, concurrency, seconds))
    return {
        "title": TITLE, "date": time.strftime("%Y-%m-%d"), "machine": where, "quiet": where["quiet"],
        "bytes": size, "concurrency": concurrency, "seconds": seconds, "figures": found,
    }  # fmt: skip


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    found = record["figures"]
    rows = [[name, *(found[name][share] for share in ("p50", "p90", "p99"))] for name in ("alone", "beside")]
    about = (
        f"{NUM_STREAMS} streams of one prompt token, {STEP_MS:g} ms a step, for {record['seconds']:g} s alone and as "
        f"long beside {record['concurrency']} prompts of {record['bytes']:,} bytes at a time. Client and tiers share "
        "the machine."
    )
    ends = f"p99 beside / alone: {found['p99_ratio']}. Long prompts a second: {found['long_prompts_per_s']}; "
    ends += f"by status: {found['statuses']}."
    return page(TITLE, record, about, markdown(["ms between tokens", "p50", "p90", "p99"], rows), ends)


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a long prompt was not answered with 200."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bytes", type=one_or_more, default=220_000, help="of a prompt (default: %(default)s)")
    parser.add_argument("--concurrency", type=one_or_more, default=50, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    record = run(given.bytes, given.concurrency, given.seconds)
    text = text_of(record)
    print(text)
    print(f"\nwritten to {write(record, text, 'long-prompts', given.out)}")
    return int(set(record["figures"]["statuses"]) != {"200"})


if __name__ == "__main__":
    sys.exit(main())
