"""What holding outputs to a grammar costs: compiling it, a token's mask, a step's masks; llguidance and xgrammar.

    python -m benchmarks.grammars [--model FOLDER] [--rows 1,8,32] [--name grammars] [--out FOLDER]

Each library is measured in a process of its own; xgrammar takes part where it is installed (`pip install xgrammar` into
an environment of its own or with --target and PYTHONPATH: the project does not need it). Compile times are processor
time; masks are of the wall clock, medians of 200 random tokens. The step's part is the engine's own path: threads fill
the rows, then the bits are applied to float32 logits on the CPU. Written to benchmarks/results/grammars.json and .md.
"""

import argparse
import datetime
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import say
from benchmarks.comparison import results
from benchmarks.grammar_libraries.cases import PERSON
from benchmarks.load import numbers
from benchmarks.machine import ROOT, machine, wait_until_quiet
from benchmarks.program import as_program, refuse_unwritable
from benchmarks.tables import markdown
from model_svc.engine.sequence import Sequence as EngineSequence
from model_svc.grammar.bench import GrammarBench
from model_svc.grammar.matching import Matching
from model_svc.grammar.source import grammar_of
from model_svc.grammar.vocabulary import load_vocabulary
from model_svc.runner.grammar_masks import forbid
from tokenwire import models
from tokenwire.constraints import json_schema
from tokenwire.sampling import NEUTRAL, StopParams

LIBRARIES = ("llguidance", "xgrammar")
SUITE = ROOT / "tests" / "model_svc" / "grammar" / "data" / "json_schema_test_suite.json"
NUM_STEPS = 60


def measure_grammars(
    folder: Path, rows: Sequence[int], *, name: str = "grammars", out: Path | None = None
) -> dict[str, Any]:
    """Measure, write the results; returns the record."""
    where = machine()
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    found = {library: measure_library(library, folder, vocab_size) for library in LIBRARIES if installed(library)}
    record = {
        "what": "milliseconds of compiling constraints and filling masks", "machine": where, "quiet": where["quiet"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "vocab_size": vocab_size, "libraries": found,
        "steps": {str(num): measure_step(folder, vocab_size, num) for num in rows},
    }  # fmt: skip
    text = results.page(
        "Holding outputs to a grammar", record, library_table(record), case_table(record), steps_table(record)
    )
    print(f"\n{text}\n", flush=True)
    say(f"written to {results.write(record, text, name, out)}")
    return record


def installed(library: str) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(library) is not None


def measure_library(library: str, folder: Path, vocab_size: int) -> dict[str, Any]:
    """One library's figures, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grammars_program", library, str(folder), str(vocab_size), str(SUITE)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_step(folder: Path, vocab_size: int, num_rows: int) -> dict[str, float]:
    """Milliseconds of a step's masks for so many rows in the middle of a JSON object: filling and applying them."""
    bench = GrammarBench(load_vocabulary(folder, vocab_size))
    grammar = grammar_of(json_schema(json.dumps(PERSON)))
    output = bench.vocabulary.tokenizer.greedy_tokenize('{"name": "')
    rows = [
        EngineSequence(number, [1, *output], 1, NEUTRAL, StopParams(max_tokens=100), constraint=Matching(grammar))
        for number in range(num_rows)
    ]
    letters = [ids[0] for word in ("alpha", "beta", "x") if (ids := bench.vocabulary.tokenizer.greedy_tokenize(word))]
    scores = torch.zeros(num_rows, vocab_size)
    index = torch.arange(num_rows)
    fill_ms, apply_ms = [], []
    for step in range(NUM_STEPS // 5):
        began_s = time.perf_counter()
        masks = bench.begin(rows)
        assert masks is not None
        masks.wait()
        fill_ms.append((time.perf_counter() - began_s) * 1000)
        began_s = time.perf_counter()
        forbid(scores, index, torch.from_numpy(masks.bits))
        apply_ms.append((time.perf_counter() - began_s) * 1000)
        for row in rows:
            row.token_ids.append(letters[step % len(letters)])
    bench.close()
    return {"fill_ms": statistics.median(fill_ms[1:]), "apply_ms": statistics.median(apply_ms[1:])}


def library_table(record: dict[str, Any]) -> str:
    """A row per library."""
    head = ["library", "import ms", "loads torch", "vocabulary ms", "peak MB", "schemas taken"]
    head += ["invalid instances taken", "valid ones missed"]
    rows = []
    for name, each in record["libraries"].items():
        suite = each["suite"]
        rows.append([
            name, each["import_ms"], "yes" if each["imports_torch"] else "no", each["vocabulary_ms"], each["peak_mb"],
            f"{suite['compiled']} of {suite['schemas']}", f"{suite['invalid_accepted']} of {suite['invalid']}",
            f"{suite['valid_missed']} of {suite['valid_missed'] + suite['valid_accepted']}",
        ])  # fmt: skip
    return markdown(head, rows)


def case_table(record: dict[str, Any]) -> str:
    """A row per form, libraries side by side."""
    libraries = list(record["libraries"])
    head = ["ms", *(f"{library}: {what}" for library in libraries for what in ("compile", "mask p50", "p95", "max"))]
    keys = ("compile_ms", "mask_p50_ms", "mask_p95_ms", "mask_max_ms")
    rows = []
    for case in record["libraries"][libraries[0]]["cases"]:
        found = [record["libraries"][library]["cases"][case] for library in libraries]
        rows.append([case, *(each[key] if each else None for each in found for key in keys)])
    return markdown(head, rows)


def steps_table(record: dict[str, Any]) -> str:
    """A row per batch."""
    rows = [[f"{num} rows", each["fill_ms"], each["apply_ms"]] for num, each in record["steps"].items()]
    title = f"A step's masks within a string of a JSON object, {record['vocab_size']:,} tokens:"
    return f"{title}\n\n{markdown(['ms', 'filled in threads', 'applied'], rows)}"


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; raises CalledProcessError when a measurement failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grammars", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default", help="a folder, or a name of the model store")
    parser.add_argument("--rows", type=numbers(int), default=[1, 8, 32], metavar="N,…")
    parser.add_argument("--name", default="grammars")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    measure_grammars(models.resolve(given.model), given.rows, name=given.name, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
