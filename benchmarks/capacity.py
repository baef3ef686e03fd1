"""How much the tiers hold and take: idle connections, running streams, the rate of the first refusal, the way back.

    python -m benchmarks.capacity --quick                        # a minute or two, to see that it works
    python -m benchmarks.capacity --out benchmarks/results       # in full, and a record of it

A real gateway and tokenizer tier over the mock engine, started here. Held are idle connections over HTTP and gRPC, with
what each adds to the gateway's memory, and streams, with what each adds to every tier's. Then requests come faster and
faster until one is refused; and ten times too many for a while, then one at a time, until one is served as usual.
Client and tiers share the machine.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.capacity_suite import held, ramp
from benchmarks.compare import say
from benchmarks.comparison.results import page, write
from benchmarks.loadgen.http_stream import ConnectionPool
from benchmarks.loadgen.loops import in_loop
from benchmarks.machine import machine, wait_until_quiet
from benchmarks.mock_stack import MockStack, mock_stack
from benchmarks.overload import BATCH, OUTPUT_TOKENS, ROOM, STEP_MS, capacity
from benchmarks.program import as_program, refuse_unwritable
from benchmarks.tables import markdown
from tokenwire.open_files import raise_limit

TITLE = "Capacity"


@dataclass(frozen=True)
class Size:
    """How far a run goes."""

    connections: tuple[int, ...]
    streams: tuple[int, ...]
    ramp_s: float
    overload_s: float


FULL = Size((500, 1000, 2000), (1000, 2500, 5000), 60.0, 20.0)
QUICK = Size((20, 40), (40, 80), 8.0, 3.0)


async def rates(stack: MockStack, size: Size) -> dict[str, Any]:
    """The ramp, and the way back from an overload."""
    pool = ConnectionPool(stack.host, stack.port)
    try:
        full = await capacity(pool, max(3.0, size.overload_s / 4))
        say(f"a full batch serves {full:.1f} requests/s")
        ramped = await ramp.ramp(pool, full, size.ramp_s)
        recovered = await ramp.recover(pool, full, size.overload_s)
    finally:
        pool.close()
    others = {**ramped.pop("other_outcomes"), **recovered.pop("other_outcomes")}
    return {"capacity_requests_per_s": round(full, 2), **ramped, **recovered, "other_outcomes": others}


def run(size: Size) -> dict[str, Any]:
    """The record."""
    where = machine()
    raise_limit()
    rows = [row for kind in held.CONNECTIONS for row in held.hold(kind, size.connections)]
    rows += [row for kind in held.STREAMS for row in held.hold(kind, size.streams)]
    with mock_stack(
        model_mock_step_ms=STEP_MS, model_mock_prefill_tokens_per_s=1e6, model_max_batch_size=BATCH,
        gateway_max_concurrent_requests=ROOM,
    ) as stack:  # fmt: skip
        found = in_loop(rates(stack, size))
    return {
        "title": TITLE, "date": time.strftime("%Y-%m-%d"), "machine": where, "quiet": where["quiet"],
        "ramp_s": size.ramp_s, "overload_s": size.overload_s, "held": rows, "rates": found,
    }  # fmt: skip


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    head = ["", "asked", "held", *(f"{tier}, KiB each" for tier in held.TIERS), "lost"]
    rows = [
        [row["kind"], row["asked"], row["held"], *row["kib_each"].values(), told(row["lost"])] for row in record["held"]
    ]
    about_held = (
        f"Held for {held.SETTLE_S:g} s after the last was opened, each kind on a stack of its own; KiB: by what the "
        "tier's resident memory has grown since none was open, over those held. Streams get a token every "
        f"{held.STREAM_STEP_MS / 1000:g} s, up to {held.MOST_IN_A_BATCH} of them; those past that wait for the model."
    )
    about_rates = (
        f"Requests of one token and {OUTPUT_TOKENS} output tokens, {STEP_MS:g} ms a step, {BATCH} sequences a step, "
        f"{ROOM} let in at once. The ramp takes {record['ramp_s']:g} s from {ramp.FROM_SHARE:g} to "
        f"{ramp.TO_SHARE:g} times the capacity; the overload is {ramp.OVERLOAD_FACTOR} times the capacity for "
        f"{record['overload_s']:g} s. As usual is at most {ramp.AS_USUAL:g} times as long as alone, and the time until "
        "then counts from the overload's last request."
    )
    figures = [[name.replace("_", " "), str(value)] for name, value in record["rates"].items()]
    shares = "Client and tiers share the machine."
    return page(TITLE, record, shares, about_held, markdown(head, rows), about_rates, markdown(["", ""], figures))


def told(lost: dict[str, int]) -> str:
    """How many are gone, and why, in one cell."""
    return ", ".join(f"{count} {why}" for why, count in lost.items()) or "none"


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a request of the ramp or the overload ended neither served nor refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few of everything: proves the logic, says nothing")
    parser.add_argument("--out", type=Path, help="folder for capacity.json and .md (default: nothing is written)")
    given = parser.parse_args(argv)
    if given.out is not None:
        refuse_unwritable(parser, given.out)
    if not given.quick:
        wait_until_quiet(say)
    record = run(QUICK if given.quick else FULL)
    text = text_of(record)
    print(text)
    if given.out is not None:
        print(f"\nwritten to {write(record, text, 'capacity', given.out)}")
    return int(bool(record["rates"]["other_outcomes"]))


if __name__ == "__main__":
    sys.exit(main())
