"""What LoRA adapters cost on a CPU: batches that mix three of them and none beside plain ones, in turn, in one process.

    python -m benchmarks.adapters                        # batch 8 and 32, ranks 8 and 16, 5 rounds
    python -m benchmarks.adapters --quantization int4

The adapters change every linear layer of the default model. Of each pair: the whole batch (128 prompt and 32 output
tokens each), its median decode step, and the CPU time of the process, whose ratio a busy machine changes least. Also
what loading an adapter does to the steps that run meanwhile. Writes benchmarks/results/adapters.json and .md.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison import results
from benchmarks.load import numbers
from benchmarks.machine import ROOT, machine, num_cores, wait_until_quiet
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown
from model_svc.engine_process import engine_environ

PROGRAM = "benchmarks.adapters_program"
MEASURES = {"whole_s": "whole batch", "step_s": "decode step", "cpu_s": "CPU time"}


def measure_adapters(
    batches: Sequence[int], ranks: Sequence[int], num_rounds: int, quantization: str, *, name: str, out: Path | None
) -> dict[str, Any]:
    """Measure in a process whose compute threads wait as the engine's do, write the results; returns the record."""
    where = machine()
    wanted = json.dumps(
        {"batches": list(batches), "ranks": list(ranks), "rounds": num_rounds, "threads": num_cores(),
         "quantization": quantization}
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, wanted], cwd=ROOT, env=engine_environ(os.environ), stdout=subprocess.PIPE,
        check=True, start_new_session=True,
    )  # fmt: skip
    record = {
        "what": "batches with LoRA adapters beside plain ones, on a CPU", "machine": where, "quiet": where["quiet"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "rounds": num_rounds,
        "quantization": quantization, **json.loads(done.stdout),
    }  # fmt: skip
    text = results.page("LoRA adapters on a CPU", record, pair_table(record), notes(record), stall_line(record))
    print(f"\n{text}\n", flush=True)
    say(f"written to {results.write(record, text, name, out)}")
    return record


def pair_table(record: dict[str, Any]) -> str:
    """Per batch and rank: the plain decode step, and plain over mixed of each measure, as median (least to most)."""
    head = [
        "batch",
        "rank",
        "plain step, ms",
        "mixed step, ms",
        *(f"{each}, plain / mixed" for each in MEASURES.values()),
    ]
    rows = []
    for key in dict.fromkeys((pair["batch"], pair["rank"]) for pair in record["pairs"]):
        pairs = [pair for pair in record["pairs"] if (pair["batch"], pair["rank"]) == key]
        steps = [1e3 * statistics.median(pair[kind]["step_s"] for pair in pairs) for kind in ("plain", "mixed")]
        rows.append([*key, *steps, *(ratio_of(pairs, measure) for measure in MEASURES)])
    return markdown(head, rows)


def ratio_of(pairs: Sequence[dict[str, Any]], measure: str) -> str:
    """Median, least and most of the pairs' ratios."""
    ratios = [pair["plain"][measure] / pair["mixed"][measure] for pair in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def notes(record: dict[str, Any]) -> str:
    """Where and with what."""
    where = record["machine"]
    megabytes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in record["adapter_bytes"].items())
    return "\n".join(
        [
            f"- {where['cpu']}, {where['cores']} cores, torch {where['versions'].get('torch')}, {record['date']}; "
            f"weights: {record['quantization']}.",
            f"- {record['rounds']} pairs each, in turn; every linear layer but the head is adapted ({megabytes}).",
        ]
    )


def stall_line(record: dict[str, Any]) -> str:
    """What loading does to the steps beside it."""
    found = record["stalls"]
    median = {key: 1e3 * statistics.median(each[key] for each in found) for key in found[0]}
    return (
        f"Decode steps of 8 sequences while an adapter is loaded, which takes {median['load_s']:.0f} ms: median "
        f"{median['median_loading_s']:.1f} ms, longest {median['longest_loading_s']:.1f} ms; without: median "
        f"{median['median_s']:.1f} ms, longest {median['longest_s']:.1f} ms (medians of {len(found)} rounds)."
    )


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; raises CalledProcessError when the measurement failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=numbers(int), default=[8, 32], metavar="N,…")
    parser.add_argument("--rank", type=numbers(int), default=[8, 16], metavar="N,…")
    parser.add_argument("--rounds", type=one_or_more, default=5)
    parser.add_argument("--quantization", choices=("none", "int8", "int4"), default="none")
    parser.add_argument("--name", default="adapters")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    measure_adapters(given.batch, given.rank, given.rounds, given.quantization, name=given.name, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
