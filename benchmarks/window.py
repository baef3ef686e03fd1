"""What the admission window costs and buys: new requests held back to start together, against continuous batching.

    python -m benchmarks.window                                  # 0, 10 and 50 ms, a closed loop and two open ones
    python -m benchmarks.window --windows 0,10,50 --rate 1,2,4 --concurrency 8,32 --rounds 3

The servers differ in `admission-window-ms` of the model tier alone; 0 is continuous batching: a request starts with the
next step. Each round takes them in turn. Writes benchmarks/results/window.json, .md and .svg.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import compare, default_work
from benchmarks.contenders.spec import Spec, spec_of
from benchmarks.load import numbers
from benchmarks.loadgen.measure import Load
from benchmarks.program import as_program, one_or_more, refuse_unwritable

WINDOWS_MS = (0.0, 10.0, 50.0)
CONCURRENCY, RATES = (8,), (1.0, 2.0)
"""The loads when none is given."""
ALONE = "(default: --concurrency 8 --rate 1,2; with one of them given, no other load)"
TITLE = "The admission window against continuous batching"


def measure_windows(
    windows_ms: Sequence[float], loads: Sequence[Load], num_rounds: int, *, options: dict[str, str], name: str,
    out: Path | None = None, output_tokens: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """One contender per window; returns the record. `options`: of each contender, such as dtype."""
    specs = [Spec("ours", {**options, "window": f"{window:g}"}) for window in windows_ms]
    work = default_work(output_tokens=output_tokens)
    return compare(specs, work, loads, num_rounds, title=TITLE, name=name, out=out)


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a window was not measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.window", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=milliseconds, default=list(WINDOWS_MS), metavar="MS,…")
    parser.add_argument("--concurrency", type=numbers(int), default=[], metavar="N,…", help=f"closed loops {ALONE}")
    parser.add_argument("--rate", type=numbers(float), default=[], metavar="R,…", help=f"open loops {ALONE}")
    parser.add_argument("--requests", type=int, default=0, help="per run (default: 4 x concurrency, or 20 s of them)")
    parser.add_argument("--rounds", type=one_or_more, default=3)
    parser.add_argument("--options", default="dtype=bfloat16", metavar="KEY=VALUE,…", help="of every server")
    parser.add_argument("--name", default="window")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    if not given.concurrency and not given.rate:
        given.concurrency, given.rate = CONCURRENCY, RATES
    loads = [Load(concurrency=n, num_requests=given.requests) for n in given.concurrency]
    loads += [Load(rate=rate, num_requests=given.requests) for rate in given.rate]
    try:
        options = dict(spec_of(f"ours:{given.options}").options)
        record = measure_windows(given.windows, loads, given.rounds, options=options, name=given.name, out=given.out)
    except ValueError as error:
        parser.error(str(error))
    return int(any(each["absent"] for each in record["contenders"]))


def milliseconds(text: str) -> list[float]:
    """Windows: 0 or more."""
    values = [float(part) for part in text.split(",")]
    if any(value < 0 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: milliseconds, 0 or more")
    return values


if __name__ == "__main__":
    sys.exit(main())
