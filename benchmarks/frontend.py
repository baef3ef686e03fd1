"""What the tiers above the model cost, beside Shepherd Model Gateway on the same cores: `make bench-frontend`.

    python -m benchmarks.peers install smg          # the peer, outside the repository
    python -m benchmarks.frontend                   # twenty minutes; fourteen with --rounds 2
    python -m benchmarks.frontend --short           # three

A mock of the model tier's Session stands behind gateway and tokenizer_svc, and an equally light mock of its own worker
behind the peer. Both are driven over OpenAI's streamed chat completions by the same client, ours over one gRPC Session
too; at 20 ms a token and as fast as it goes. Our whole stack, with the model tier's scheduler around the mock engine,
runs beside them. Writes benchmarks/results/frontend.json and .md; --short writes short-frontend.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import default_work, say
from benchmarks.comparison.results import page, write
from benchmarks.frontend_suite.report import bars_table, first_text_table, memory_table, pace_table, remarks
from benchmarks.frontend_suite.summary import bars, by_load
from benchmarks.frontend_suite.turns import DIRECT, Pace, measure_pace
from benchmarks.load import numbers
from benchmarks.loadgen.measure import Load
from benchmarks.machine import machine, wait_until_quiet
from benchmarks.program import as_program, one_or_more, refuse_unwritable

TITLE = "What the frontend costs"
PACED_MS = 20.0
WAVES = {1: 6, 32: 4, 128: 6, 1000: 3}
"""Requests of a paced run, in times its concurrency: a wave takes 1.3 seconds."""
UNPACED = {1: 200, 32: 1600, 128: 2560, 1000: 3000}
"""Requests of an unpaced run."""


def paces(concurrency: Sequence[int], short: bool) -> list[Pace]:
    """What is measured. `short`: half of the requests."""
    share = 2 if short else 1
    paced = [Load(concurrency=n, num_requests=n * max(2, WAVES.get(n, 4) // share)) for n in concurrency]
    unpaced = [Load(concurrency=n, num_requests=max(n, UNPACED.get(n, 20 * n) // share)) for n in concurrency]
    return [Pace(PACED_MS, tuple(paced)), Pace(0.0, tuple(unpaced))]


def measure(concurrency: Sequence[int], num_rounds: int, short: bool) -> dict[str, Any]:
    """The record of a whole run."""
    where = machine()
    work = default_work()
    work = type(work)(**{**work.__dict__, "form": "text", "timeout_s": 120.0})
    found: list[dict[str, Any]] = []
    for pace in paces(concurrency, short):
        takers, about = measure_pace(pace, work, num_rounds, say)
        found.append(
            {
                "label": pace.label,
                "step_ms": pace.step_ms,
                "about": about,
                "absent": {taker.name: taker.absent for taker in takers if taker.absent},
                "figures": {taker.name: by_load(taker.rounds) for taker in takers if taker.rounds},
            }
        )
    return {
        "title": TITLE,
        "date": time.strftime("%Y-%m-%d"),
        "machine": where,
        "quiet": where["quiet"],
        "rounds": num_rounds,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "bars": bars(found[0]["figures"], found[1]["figures"]),
        "paces": found,
    }


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    parts = [bars_table(record["bars"])]
    for pace in record["paces"]:
        above = {name: loads for name, loads in pace["figures"].items() if name != DIRECT}
        parts += [f"## {pace['label'].capitalize()}", pace_table(pace["figures"])]
        parts += ["Added to the wait for the first text:", first_text_table(above), "Memory:", memory_table(above)]
    return page(TITLE, record, *parts, "## Remarks", remarks(record))


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a contender was not measured or a request failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="one round, half of the requests, 1 and 128 streams")
    parser.add_argument("--concurrency", type=numbers(int), default=[], metavar="N,…", help="(default: 1,32,128,1000)")
    parser.add_argument("--rounds", type=one_or_more, default=0, help="(default: 3)")
    parser.add_argument("--name", default="", help="of the files of results")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    if not given.short:  # a short run is no record
        wait_until_quiet(say)
    concurrency = given.concurrency or ([1, 128] if given.short else [1, 32, 128, 1000])
    record = measure(concurrency, given.rounds or (1 if given.short else 3), given.short)
    name = given.name or ("short-frontend" if given.short else "frontend")
    text = text_of(record)
    print(text)
    print(f"\nwritten to {write(record, text, name, given.out)}")
    loads = [found for pace in record["paces"] for loads in pace["figures"].values() for found in loads.values()]
    return int(any(pace["absent"] for pace in record["paces"]) or any(found["failures"] for found in loads))


if __name__ == "__main__":
    sys.exit(main())
