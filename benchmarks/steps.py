"""Decode steps on a CPU beside their floors and beside `transformers`, in turn, in one run.

    python -m benchmarks.steps                          # bfloat16, int8, int4; batch 1, 8 and 32; context 128
    python -m benchmarks.steps --batch 1,32 --rounds 5

Two floors: reading every weight once at the bandwidth measured here (what one sequence cannot beat), and the model's
matrix products alone through oneDNN with packed weights (what a full batch spends its time on). `whole step` is the
engine's: schedule, forward, draw, publish; `forward` is its forward phase. Also what quantised weights lose: KL
divergence from float32 and how often the likeliest token is the same, over English prose. Writes
benchmarks/results/steps.json and .md.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison import results
from benchmarks.load import numbers
from benchmarks.machine import ROOT, machine, num_cores
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown
from model_svc.engine_process import engine_environ

PROGRAM = "benchmarks.steps_program"


def measure_steps(
    batches: Sequence[int], context: int, num_rounds: int, *, name: str = "steps", out: Path | None = None
) -> dict[str, Any]:
    """Measure in a process whose compute threads wait as the engine's do, write the results; returns the record."""
    where = machine()
    wanted = json.dumps({"batches": list(batches), "context": context, "rounds": num_rounds, "threads": num_cores()})
    command = [sys.executable, "-m", PROGRAM, wanted]
    done = subprocess.run(
        command, cwd=ROOT, env=engine_environ(os.environ), stdout=subprocess.PIPE, check=True,
        start_new_session=True,  # a terminal's Ctrl-C is for this process, which then kills that one
    )  # fmt: skip
    record = {
        "what": "milliseconds of decode steps on a CPU, and their floors", "machine": where, "quiet": where["quiet"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "context": context, "rounds": num_rounds,
        **json.loads(done.stdout),
    }  # fmt: skip
    text = results.page("Decode steps on a CPU", record, step_table(record), notes(record), quality_table(record))
    print(f"\n{text}\n", flush=True)
    say(f"written to {results.write(record, text, name, out)}")
    return record


def step_table(record: dict[str, Any]) -> str:
    """A row per thing that was timed, a column per batch."""
    steps = record["steps_ms"]
    batches = list(next(iter(steps.values())))
    head = ["ms", *(f"batch {batch}" for batch in batches)]
    return markdown(head, [[what, *(times[batch] for batch in batches)] for what, times in steps.items()])


def notes(record: dict[str, Any]) -> str:
    """Where and with what."""
    where = record["machine"]
    lines = [
        f"- {where['cpu']}, {where['cores']} cores, torch {where['versions'].get('torch')}, transformers "
        f"{where['versions'].get('transformers')}, {record['date']}.",
        f"- All cores read {record['read_gb_per_s']:.1f} GB/s; bfloat16 weights are {record['weight_mb']:.0f} MB.",
        f"- {record['context']} tokens of context, greedy; medians of {record['rounds']} rounds in turn.",
    ]
    return "\n".join(lines)


def quality_table(record: dict[str, Any]) -> str:
    """What each kind of weights loses."""
    found = record["quality"]
    head = ["weights", "MB", "mean KL from float32", "same likeliest token"]
    rows = [[name, each["mb"], each["kl"], f"{100 * each['top1']:.1f} %"] for name, each in found["kinds"].items()]
    return f"Over {found['tokens']} tokens of English prose:\n\n{markdown(head, rows)}"


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; raises CalledProcessError when the measurement failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=numbers(int), default=[1, 8, 32], metavar="N,…")
    parser.add_argument("--context", type=int, default=128, help="tokens of context of each sequence")
    parser.add_argument("--rounds", type=one_or_more, default=3)
    parser.add_argument("--name", default="steps")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    measure_steps(given.batch, given.context, given.rounds, name=given.name, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
