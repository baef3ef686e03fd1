"""Embeddings per second of an encoder on a CPU, beside padded batches of `transformers`, in turn, in one run.

    python -m benchmarks.embeddings --model FOLDER          # 512 inputs, three rounds
    python -m benchmarks.embeddings --model FOLDER --inputs 256 --rounds 5

`ours` is the engine in one process: queue, steps, packed forward passes, pooling. `transformers` computes batches of
32, sorted by length and padded to their longest, as sentence-transformers does, and pools likewise. Inputs are token
ids: nobody tokenizes. Also the CPU time, and how near the vectors are to those of transformers in float32. Writes
benchmarks/results/embeddings.json and .md.
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
from benchmarks.machine import ROOT, machine, num_cores, wait_until_quiet
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown
from model_svc.engine_process import engine_environ

PROGRAM = "benchmarks.embeddings_program"


def measure_embeddings(
    model: Path, num_inputs: int, num_rounds: int, *, name: str = "embeddings", out: Path | None = None
) -> dict[str, Any]:
    """Measure in a process whose compute threads wait as the engine's do, write the results; returns the record."""
    where = machine()
    wanted = json.dumps({"model": str(model), "inputs": num_inputs, "rounds": num_rounds, "threads": num_cores()})
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, wanted], cwd=ROOT, env=engine_environ(os.environ), stdout=subprocess.PIPE,
        check=True, start_new_session=True,
    )  # fmt: skip
    record = {
        "what": "embeddings per second of an encoder on a CPU", "machine": where, "quiet": where["quiet"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "rounds": num_rounds,
        **json.loads(done.stdout),
    }  # fmt: skip
    text = results.page("Embeddings on a CPU", record, speed_table(record), notes(record))
    print(f"\n{text}\n", flush=True)
    say(f"written to {results.write(record, text, name, out)}")
    return record


def speed_table(record: dict[str, Any]) -> str:
    """A row per contender: speed, how it compares with the reference in the same round, how near its vectors are."""
    head = ["", "embeddings/s", "tokens/s", "ratio to transformers float32", "CPU-s/1k", "least cosine"]
    rows = [
        [
            name,
            each["inputs_per_s"],
            each["tokens_per_s"],
            each["ratio"],
            each["cpu_s_per_1k"],
            f"{each['least_cosine']:.7f}",
        ]
        for name, each in record["contenders"].items()
    ]
    return markdown(head, rows)


def notes(record: dict[str, Any]) -> str:
    """Where and with what."""
    where, lengths = record["machine"], record["lengths"]
    lines = [
        f"- {where['cpu']}, {where['cores']} cores, torch {where['versions'].get('torch')}, transformers "
        f"{where['versions'].get('transformers')}, {record['date']}.",
        f"- {record['model']}: {record['num_inputs']} inputs of {lengths['least']} to {lengths['most']} tokens, "
        f"{lengths['mean']:.0f} on average.",
        f"- Medians of {record['rounds']} rounds in turn; the ratio is the median of the rounds' own.",
    ]
    return "\n".join(lines)


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; raises CalledProcessError when the measurement failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings", description=__doc__, 
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", type=Path, required=True, help="folder of an encoder")
    parser.add_argument("--inputs", type=one_or_more, default=512)
    parser.add_argument("--rounds", type=one_or_more, default=3)
    parser.add_argument("--name", default="embeddings")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    measure_embeddings(given.model, given.inputs, given.rounds, name=given.name, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
