"""One Session of the Node client with very many requests at once: what one of them at zero credit costs the others.

    python -m benchmarks.node_session              # two minutes
    python -m benchmarks.node_session --rounds 1   # a look

The real tiers over the mock engine, and the Node client (`clients/node`, built with `npm install && npm run build`).
Each round runs undisturbed, with one request held, and over four connections, in turn. The figure: the 99th percentile
of the time between two pieces of one output, over all the others. Writes benchmarks/results/node-session.json and .md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import say
from benchmarks.comparison.results import page, write
from benchmarks.machine import ROOT, machine, wait_until_quiet
from benchmarks.mock_stack import MockStack, mock_stack
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown

TITLE = "One Session of the Node client"
PROGRAM = ROOT / "clients" / "node" / "dist" / "load.js"
STEP_MS = 20.0
RUN_S = 300
HELD = "one held"
CONNECTIONS = 4
KINDS: dict[str, list[str]] = {
    "undisturbed": [],
    HELD: ["--held", "true"],
    f"{CONNECTIONS} connections": ["--connections", str(CONNECTIONS)],
}
"""Each kind of run, and what the client's program is told."""


def turn(node: str, program: Path, stack: MockStack, requests: int, tokens: int, kind: str) -> dict[str, Any]:
    """One run of the client's program. Raises RuntimeError where what it counts is not what it asked for."""
    command = [node, str(program), "--target", f"{stack.host}:{stack.grpc_port}"]
    command += ["--requests", str(requests), "--tokens", str(tokens), *KINDS[kind]]
    run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    if run.returncode:
        raise RuntimeError(f"the client failed: {run.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    if (
        found["tokens"] != (requests - 1) * tokens
        or found["first_tokens"] != tokens
        or (kind == HELD) != found["held_at_the_end"]
    ):
        raise RuntimeError(f"the client saw something else than it asked for: {found}")
    return found


def measured(node: str, program: Path, requests: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Rounds of each kind in turn, and the median of what each round's held run is to its undisturbed one."""
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with mock_stack(
        model_mock_step_ms=STEP_MS, model_mock_prefill_tokens_per_s=1e6, model_max_batch_size=requests,
    ) as stack:  # fmt: skip
        turn(node, program, stack, requests, tokens, "undisturbed")
        for number in range(rounds):
            for kind in KINDS:
                found = turn(node, program, stack, requests, tokens, kind)
                turns[kind].append(found)
                say(f"round {number + 1}, {kind}: p99 {found['gap_ms_p99']:.1f} ms")
    ratios = [
        held["gap_ms_p99"] / plain["gap_ms_p99"] for plain, held in zip(turns["undisturbed"], turns[HELD], strict=True)
    ]
    return {"turns": turns, "p99_ratio_median": median(ratios), "p99_ratios": ratios}


def run(node: str, program: Path, requests: int, tokens: int, rounds: int) -> dict[str, Any]:
    """The record."""
    where = machine()
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "title": TITLE, "date": time.strftime("%Y-%m-%d"), "machine": where, "quiet": where["quiet"],
        "node": version, "requests": requests, "output_tokens": tokens, "rounds": rounds,
        "figures": measured(node, program, requests, tokens, rounds),
    }  # fmt: skip


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    figures = record["figures"]
    rows = []
    for kind, turns in figures["turns"].items():
        middle = {name: median(each[name] for each in turns) for name in ("gap_ms_p50", "gap_ms_p99", "gap_ms_max")}
        speed = median(each["tokens"] / each["seconds"] for each in turns)
        rows.append([kind, *(f"{middle[name]:.1f}" for name in middle), f"{speed:,.0f}"])
    about = (
        f"{record['requests']} requests at once on one Session, {record['output_tokens']} tokens each, mock engine at "
        f"{STEP_MS:g} ms a step, Node {record['node']}; client and tiers share the machine. Times between two pieces "
        "of one output in ms, over all requests but one, which is read like the others or held at zero credit; or over "
        f"{CONNECTIONS} connections with a Session each, all to one gateway process; medians "
        f"of {record['rounds']} rounds in turn. p99 with one held is {figures['p99_ratio_median']:.2f} times the "
        "undisturbed one (median of the rounds' ratios)."
    )
    return page(TITLE, record, about, markdown(["", "p50", "p99", "longest", "tokens/s"], rows))


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.node_session",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=one_or_more, default=500, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=one_or_more, default=200, help="of each output (default: %(default)s)")
    parser.add_argument("--rounds", type=one_or_more, default=5, help="(default: %(default)s)")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="the client's, built (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    node = shutil.which("node")
    if node is None:
        parser.exit(2, f"{parser.prog}: node is not installed\n")
    if not given.program.is_file():
        parser.exit(2, f"{parser.prog}: {given.program} is not there: npm install && npm run build in clients/node\n")
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    record = run(node, given.program, given.requests, given.tokens, given.rounds)
    text = text_of(record)
    print(text)
    print(f"\nwritten to {write(record, text, 'node-session', given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
