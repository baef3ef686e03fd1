"""What it costs the edge to be observed: CPU seconds for a million tokens with nothing, with metrics, with everything.

    python -m benchmarks.observing                # six minutes
    python -m benchmarks.observing --rounds 1     # two

Gateway and tokenizer tier before a mock of the model tier's Session, three times over, measured in turn and each
second round in reverse: counting nothing and never asked (`nothing`); as they are by default, both metrics ports read
every five seconds (`metrics`); with requests traced besides (`everything`), to a collector that this program is.
Streams of 64 tokens, 20 ms a token. Writes benchmarks/results/observing.json and .md.
"""

import argparse
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from benchmarks.compare import default_work, say
from benchmarks.comparison.results import page, write
from benchmarks.contenders import ours_edge
from benchmarks.contenders.running import Running
from benchmarks.contenders.spec import Spec
from benchmarks.loadgen.measure import Load, run
from benchmarks.machine import machine, wait_until_quiet
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown

TITLE = "What being observed costs the edge"
NOTHING, METRICS, EVERYTHING = "nothing", "metrics", "everything"
TIERS = ("gateway", "tokenizer")
SCRAPE_S = 5.0
"""As deploy/prometheus has it."""
TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
BAR = 1.05
"""With everything on the edge may take so many times as much."""


class Collector:
    """Takes traces and keeps none; counts their bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def export(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        self.num_bytes += len(request)
        return b""


@contextmanager
def collector() -> Iterator[tuple[str, Collector]]:
    """Its address, while the block runs."""
    taking = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    export = grpc.unary_unary_rpc_method_handler(taking.export)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(TRACE_SERVICE, {"Export": export})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", taking
    finally:
        server.stop(None).wait()


@contextmanager
def scraped(running: Running) -> Iterator[None]:
    """Both tiers' metrics are read again and again while the block runs."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(SCRAPE_S):
            for tier in TIERS:
                url = f"http://{running.addresses[f'{tier} metrics']}/metrics"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    answer.read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def measure(concurrency: int, num_requests: int, num_rounds: int, ratio: float) -> dict[str, Any]:
    """The record of a whole run."""
    where, work = machine(), default_work()
    work = type(work)(**{**work.__dict__, "form": "text", "timeout_s": 120.0})
    load = Load(concurrency=concurrency, num_requests=num_requests)
    rounds: dict[str, list[dict[str, Any]]] = {NOTHING: [], METRICS: [], EVERYTHING: []}
    with ExitStack() as started:
        endpoint, taking = started.enter_context(collector())
        options = {NOTHING: {"counts": "no"}, METRICS: {}, EVERYTHING: {"collector": endpoint, "ratio": f"{ratio:g}"}}
        stacks: dict[str, Running] = {}
        for name, given in options.items():
            say(f"starting: {name}")
            stacks[name] = ours_edge.start(Spec(ours_edge.EDGE, given), 1, say)
            started.callback(stacks[name].stop)
        for number in range(num_rounds):
            for name in list(stacks) if number % 2 == 0 else reversed(stacks):
                say(f"round {number + 1} of {num_rounds}: {name}")
                with ExitStack() as asked:
                    if name != NOTHING:
                        asked.enter_context(scraped(stacks[name]))
                    rounds[name] += run(stacks[name].target, work, [load], seed=number + 1, say="  ")
    return {
        "title": TITLE, "date": time.strftime("%Y-%m-%d"), "machine": where, "quiet": where["quiet"],
        "rounds": num_rounds, "concurrency": concurrency, "requests": num_requests, "trace_ratio": ratio,
        "prompt_tokens": work.prompt_tokens, "output_tokens": work.output_tokens, "trace_bytes": taking.num_bytes,
        "figures": rounds, "ratios": {name: ratios(rounds, name) for name in (METRICS, EVERYTHING)},
    }  # fmt: skip


def cpu_s(found: dict[str, Any], tiers: Sequence[str] = TIERS) -> float:
    """Of these tiers for a million tokens."""
    return 1000 * float(sum(found["tiers"][tier]["cpu_s_per_1000_tokens"] for tier in tiers))


def ratios(rounds: dict[str, list[dict[str, Any]]], name: str) -> list[float]:
    """Of each round, to that with nothing."""
    return [round(cpu_s(a) / cpu_s(b), 4) for a, b in zip(rounds[name], rounds[NOTHING], strict=True)]


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    rows = []
    for name, found in record["figures"].items():
        cells = [median(cpu_s(each, [tier]) for each in found) for tier in TIERS]
        both = median(map(cpu_s, found))
        each = record["ratios"].get(name)
        rows.append([name, *cells, both, "" if each is None else f"{median(each):.3f}",
                     "" if each is None else ", ".join(f"{ratio:.3f}" for ratio in each)])  # fmt: skip
    about = (
        f"{record['concurrency']} streams over OpenAI's HTTP API, {record['output_tokens']} tokens each, 20 ms apart. "
        f"Medians of {record['rounds']} rounds, each of which measures all three in turn. CPU seconds of the processes."
    )
    last = f"Traced: {record['trace_ratio']:.0%} of the requests, {record['trace_bytes'] / 1e6:.1f} MB. "
    last += f"Bar: everything at most {BAR} times nothing."
    head = ["", "gateway, CPU s per million tokens", "tokenizer tier", "both", "ratio to nothing", "of each round"]
    return page(TITLE, record, about, markdown(head, rows), last)


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when the bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.observing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", type=one_or_more, default=128, help="(default: %(default)s)")
    parser.add_argument("--requests", type=one_or_more, default=1024, help="of each turn (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=1.0, help="part of the requests traced (default: %(default)s)")
    parser.add_argument("--rounds", type=one_or_more, default=5, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    wait_until_quiet(say)
    record = measure(given.concurrency, given.requests, given.rounds, given.ratio)
    text = text_of(record)
    print(text)
    print(f"\nwritten to {write(record, text, 'observing', given.out)}")
    return int(median(record["ratios"][EVERYTHING]) > BAR)


if __name__ == "__main__":
    sys.exit(main())
