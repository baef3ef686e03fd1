"""Speculation on and off over one loaded model, in turn, pair by pair: how many times as fast, with its confidence.

    python -m benchmarks.speculation                      # n-grams; batch 1 and 32; 10 pairs of each case
    python -m benchmarks.speculation --pairs 3 --batch 1 --cases copying
    python -m benchmarks.speculation --cpu-time           # one thread, in CPU seconds: a busy machine says the same

Texts to copy and code to edit, greedy, as a chat asks for them; and random text: random prompts, sampled at temperature
1, where there is nothing to repeat. Each pair has requests of its own, the engines keep what they have learned; the
first pair warms them up. Tokens per second after each request's first one. The interval holds the mean ratio (of
logarithms) with 95 %, by resampling pairs. Counted too: requests whose tokens differ, of which there must be none where
a token's logits do not depend on what shares its step. Writes benchmarks/results/speculation.json and .md.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison import results
from benchmarks.load import numbers
from benchmarks.machine import ROOT, machine, num_cores, wait_until_quiet
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown
from model_svc.engine_process import engine_environ
from tokenwire.model_catalog import DEFAULT_MODEL

PROGRAM = "benchmarks.speculation_program"
NUM_RESAMPLES = 4000
CONFIDENCE = 0.95


def measure_speculation(
    wanted: dict[str, Any], *, name: str = "speculation", out: Path | None = None
) -> dict[str, Any]:
    """Measure in a process whose compute threads wait as the engine's do, write the results; returns the record."""
    where = machine()
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, json.dumps(wanted)], cwd=ROOT, env=engine_environ(os.environ),
        stdout=subprocess.PIPE, check=True,
        start_new_session=True,  # a terminal's Ctrl-C is for this process, which then kills that one
    )  # fmt: skip
    record = {
        "what": "tokens per second with speculation and without", "machine": where,
        "quiet": where["quiet"] or wanted["cpu_time"], "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "wanted": wanted, "cases": json.loads(done.stdout),
    }  # fmt: skip
    text = results.page("Speculation on and off", record, case_table(record["cases"]), notes(record))
    print(f"\n{text}\n", flush=True)
    say(f"written to {results.write(record, text, name, out)}")
    return record


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of ratios, and the interval that holds it with CONFIDENCE, by resampling them."""
    logs, rng = [math.log(ratio) for ratio in ratios], Random(0)
    means = sorted(fmean(rng.choices(logs, k=len(logs))) for _ in range(NUM_RESAMPLES))
    cut = round((1 - CONFIDENCE) / 2 * NUM_RESAMPLES)
    return math.exp(fmean(logs)), math.exp(means[cut]), math.exp(means[-1 - cut])


def case_table(cases: Sequence[dict[str, Any]]) -> str:
    """A row per case."""
    head = [
        "requests",
        "at a time",
        "pairs",
        "off, tokens/s",
        "on, tokens/s",
        "on/off",
        "95 %",
        "accepted",
        "differing",
    ]
    rows = []
    for case in cases:
        off, on = case["tokens_per_s"]["off"], case["tokens_per_s"]["on"]
        mean, low, high = interval([b / a for a, b in zip(off, on, strict=True)])
        accepted = f"{case['accepted']}/{case['drafted']}"
        rows.append(
            [
                case["case"], case["batch"], len(off), median(off), median(on), f"{mean:.2f}", f"{low:.2f}–{high:.2f}",
                accepted, f"{case['differing']}/{case['requests']}",
            ]
        )  # fmt: skip
    return markdown(head, rows)


def notes(record: dict[str, Any]) -> str:
    """Where and with what."""
    where, wanted = record["machine"], record["wanted"]
    clock = "CPU seconds of one thread" if wanted["cpu_time"] else f"{wanted['threads']} threads"
    adapting = "adapting" if wanted["adaptive"] else "not adapting"
    draft = f", draft model {Path(wanted['draft_model']).name}" if wanted["draft_model"] else ""
    return "\n".join(
        [
            f"- {where['cpu']}, torch {where['versions'].get('torch')}, {record['date']}; {clock}.",
            f"- {wanted['model']}, {wanted['dtype']}, weights {wanted['quantization']}, CPU kernels "
            f"{wanted['cpu_kernels']}; speculation "
            f"{wanted['speculation']}, up to {wanted['length']} drafts, {adapting}{draft}; up to {wanted['tokens']} "
            "tokens a request.",
        ]
    )


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; raises CalledProcessError when the measurement failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--pairs", type=one_or_more, default=10)
    parser.add_argument("--batch", type=numbers(int), default=[1, 32], metavar="N,…", help="requests at a time")
    parser.add_argument("--requests", type=one_or_more, default=6, help="of each engine in a pair, one batch at least")
    parser.add_argument("--tokens", type=one_or_more, default=128, help="most output tokens of a request")
    parser.add_argument("--cases", default="", metavar="WORD", help="only cases whose name has this in it")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--speculation", default="ngram")
    parser.add_argument("--draft-model", default="", help="folder of a draft model")
    parser.add_argument("--draft-quantization", default="none")
    parser.add_argument("--cpu-kernels", default="auto", help="off: a token's logits depend on what shares its step")
    parser.add_argument("--length", type=one_or_more, default=8, help="most drafts")
    parser.add_argument("--fixed-length", action="store_true", help="do not adapt the length")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, timed in CPU seconds")
    parser.add_argument("--name", default="speculation")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wanted = {
        "pairs": given.pairs, "batches": given.batch, "requests": given.requests, "tokens": given.tokens,
        "cases": given.cases, "model": given.model, "dtype": given.dtype, "quantization": given.quantization,
        "speculation": given.speculation, "draft_model": given.draft_model,
        "draft_quantization": given.draft_quantization, "cpu_kernels": given.cpu_kernels, "length": given.length,
        "adaptive": not given.fixed_length, "cpu_time": given.cpu_time,
        "threads": 1 if given.cpu_time else num_cores(),
    }  # fmt: skip
    if not given.cpu_time:  # which a busy machine changes little
        wait_until_quiet(say)
    measure_speculation(wanted, name=given.name, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
