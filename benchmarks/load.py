"""Load for one running server, and what it does under it.

    python -m benchmarks.load --api session --target 127.0.0.1:50051 --concurrency 1,8,32
    python -m benchmarks.load --api grpc    --target 127.0.0.1:50051 --concurrency 32 --requests 256
    python -m benchmarks.load --api http    --target 127.0.0.1:8080  --rate 2,4,8 --requests 200 --json out.json
    python -m benchmarks.load --api chat --target 127.0.0.1:8080 --prompt-form text --tokenizer FILE --concurrency 8
    python -m benchmarks.load --api http --target 127.0.0.1:8000 --model NAME --tier vllm=4711 --concurrency 8

--concurrency is a closed loop: so many requests at a time, the next begins when one ends. --rate is an open loop:
requests arrive at random (Poisson), so many a second, whatever became of those before. Each server is asked the same:
prompts of --prompt-tokens random token ids, greedy outputs of exactly --output-tokens (end-of-sequence is ignored). An
answer with another number of tokens is a failure. --tier NAME=PID reads the CPU time and memory of that process and
those below it. What the figures mean: benchmarks/METHODOLOGY.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.loadgen.clients import CLIENTS
from benchmarks.loadgen.failures import in_one_line
from benchmarks.loadgen.http_completions import DIALECTS
from benchmarks.loadgen.measure import Load, Target, run
from benchmarks.loadgen.work import Work
from benchmarks.machine import machine
from benchmarks.program import as_program
from benchmarks.tables import load_table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--api", choices=list(CLIENTS), default="http", help="what is spoken (default: %(default)s)")
    made.add_argument("--target", required=True, help="host:port; for --api pipe a command line")
    made.add_argument("--model", default="", help="name to ask for (default: none is named)")
    made.add_argument("--dialect", choices=list(DIALECTS), default="openai", help="form of HTTP bodies")
    made.add_argument("--concurrency", type=numbers(int), default=[], metavar="N,…", help="closed loops")
    made.add_argument("--rate", type=numbers(float), default=[], metavar="R,…", help="open loops, requests a second")
    made.add_argument("--requests", type=int, default=0, help="per run (default: 4 x concurrency, or 20 s of them)")
    made.add_argument("--warmup", type=int, default=-1, help="requests before each run that do not count")
    made.add_argument("--prompt-tokens", type=int, default=128)
    made.add_argument("--output-tokens", type=int, default=64)
    made.add_argument("--vocab-size", type=int, default=49152, help="token ids of prompts are below it")
    made.add_argument(
        "--prompt-form", choices=["ids", "text"], default="ids", help="text needs --tokenizer; chat needs text"
    )
    made.add_argument("--tokenizer", default="", metavar="FILE", help="tokenizer.json, for texts of an exact length")
    made.add_argument("--timeout", type=float, default=600.0, help="seconds for one request")
    made.add_argument("--seed", type=int, default=0, help="chooses prompts and arrivals; another one, other prompts")
    made.add_argument("--tier", type=named_pid, action="append", default=[], metavar="NAME=PID", help="repeatable")
    made.add_argument("--json", default="", metavar="FILE", help="write the results there; - is standard output")
    return made


def numbers(kind: type) -> Any:
    """A parser of lists with commas."""

    def parse(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",")]
        if any(value <= 0 for value in values):
            raise argparse.ArgumentTypeError(f"{text}: numbers above 0")
        return values

    return parse


def named_pid(text: str) -> tuple[str, int]:
    name, _, pid = text.partition("=")
    if not name or not pid.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=PID")
    return name, int(pid)


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a request failed, 2 when nothing could be measured."""
    made = parser()
    given = made.parse_args(argv)
    loads = [Load(concurrency=n, num_requests=given.requests, warmup=given.warmup) for n in given.concurrency]
    loads += [Load(rate=r, num_requests=given.requests, warmup=given.warmup) for r in given.rate]
    if not loads:
        made.error("nothing to do: --concurrency 1,8,32 or --rate 2,4")
    if given.api == "chat" and given.prompt_form != "text":
        made.error("--api chat takes no token ids: --prompt-form text --tokenizer FILE, the model's tokenizer.json")
    work = Work(
        given.prompt_tokens, given.output_tokens, given.vocab_size, given.seed, given.prompt_form, given.tokenizer,
        given.timeout,
    )  # fmt: skip
    target = Target(given.api, given.target, given.model, given.dialect, dict(given.tier))
    try:
        results = run(target, work, loads, seed=given.seed)
    except Exception as error:  # whatever a client raises, it is why there is no measurement
        print(f"{given.target}: {in_one_line(error)}", file=sys.stderr)
        return 2
    record = {
        "what": f"{given.api} at one server", "machine": machine(),
        "prompt_tokens": work.prompt_tokens, "output_tokens": work.output_tokens, "runs": results,
    }  # fmt: skip
    if given.json == "-":
        print(json.dumps(record, indent=2))
    else:
        print(load_table(results))
        if given.json:
            Path(given.json).write_text(json.dumps(record, indent=2) + "\n")
    return int(any(result["failures"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
