"""A fault under load, and what came of it: what clients saw, and how long it took to serve again."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.chaos.load import Load
from tests.chaos.stack import ChaosStack
from tokenwire.client import AsyncClient
from tokenwire.errors import TokenwireError

BEGIN, END = "<!-- faults: made by make chaos -->\n", "<!-- end of faults -->\n"
PROBE_TIMEOUT_S = 2.0
WARM_REQUESTS = 24
STILL_SERVING_REQUESTS = 24


@dataclass
class Row:
    """One line of the table in docs/reliability.md."""

    fault: str
    seen: str
    serves_again_s: float
    """From the fault until a new request was served in full."""

    @property
    def cells(self) -> list[str]:
        return [self.seen, f"{self.serves_again_s:.1f} s"]


@dataclass
class Record:
    """All rows of a run."""

    rows: list[Row] = field(default_factory=list)

    def table(self) -> str:
        return table({row.fault: row.cells for row in self.rows})

    def into(self, page: Path) -> None:
        """Replace these rows of the page's table, and add those it has not."""
        head, rest = page.read_text().split(BEGIN)
        found, tail = rest.split(END)
        cells = [line.strip("| ").split(" | ") for line in found.strip().splitlines()[2:]]
        rows = {each[0]: each[1:] for each in cells} | {row.fault: row.cells for row in self.rows}
        page.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}")


def table(rows: dict[str, list[str]]) -> str:
    """In Markdown."""
    head = "| Fault | Requests meanwhile, and how they ended | Serves again after |\n| --- | --- | --- |\n"
    return head + "".join(f"| {' | '.join([fault, *cells])} |\n" for fault, cells in rows.items())


@dataclass
class Fault:
    """What goes wrong, how it is put right, and what is promised meanwhile."""

    name: str
    begin: Callable[[ChaosStack], object]
    end: Callable[[ChaosStack], object] = lambda stack: None
    """What the world does afterwards: the network heals, a supervisor starts another process."""
    lasts_s: float = 1.0
    """The fault's, at least; it stays until the stack serves again where `serves_meanwhile`."""
    serves_meanwhile: bool = True
    """Whether new requests are served before the fault has ended: another process is there to do it."""
    serves_again_within_s: float = 30.0
    may_cut: bool = False
    """The gateway goes: connections to it may break without a word."""
    allowed: frozenset[str] = frozenset()
    """Reasons that requests may end with; none: every request is served in full."""


async def serves(stack: ChaosStack, began_s: float, within_s: float) -> float:
    """Ask new requests, one after the other, until one is served. Returns the seconds from `began_s`."""
    while True:
        sent_s = time.monotonic()
        try:
            async with AsyncClient(stack.target, max_attempts=1) as client:
                (output,) = await client.generate("A probe", max_tokens=5, timeout_s=PROBE_TIMEOUT_S).outputs()
            if output.error is None and output.terminal.usage.completion_tokens == 5:
                return time.monotonic() - began_s
        except (TokenwireError, grpc.RpcError):
            pass
        assert sent_s - began_s < within_s, f"does not serve again within {within_s} s\n{stack.logs()[-6000:]}"
        await asyncio.sleep(0.05)


async def under_load(stack: ChaosStack, fault: Fault, width: int = 2) -> Row:
    """Begin the fault under load, wait until the stack serves, end it, and see that everything is as before."""
    load = Load(stack.target, stack.http_url, may_cut=fault.may_cut)
    await load.learn()
    running = asyncio.ensure_future(load.run(width))
    try:
        await more(load, WARM_REQUESTS, running)
        began_s = time.monotonic()
        await asyncio.to_thread(fault.begin, stack)
        if fault.serves_meanwhile:
            took_s = await serves(stack, began_s, fault.serves_again_within_s)
            await asyncio.sleep(max(0.0, fault.lasts_s - took_s))
            await asyncio.to_thread(fault.end, stack)
        else:
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(fault.end, stack)
            took_s = await serves(stack, began_s, fault.serves_again_within_s + fault.lasts_s)
        await more(load, STILL_SERVING_REQUESTS, running)
    finally:
        load.stop = True
        if not running.done():
            done, _ = await asyncio.wait({running}, timeout=90)
            if not done:
                running.cancel()
    ledger = load.ledger
    assert ledger.num_open == 0, f"{ledger.num_open} requests never ended: {ledger.begun - ledger.ended}"
    await running
    assert not ledger.broken, ledger.broken[:5]
    unwanted = set(ledger.outcomes) - fault.allowed - {"ok", "cancelled"}
    assert not unwanted, f"requests ended with {unwanted}: {ledger.seen()}"
    await asyncio.to_thread(stack.check_nothing_is_left)
    return Row(fault.name, f"{ledger.seen()}; the longest took {ledger.longest_s:.1f} s", took_s)


async def more(load: Load, num_requests: int, running: "asyncio.Future[None]", limit_s: float = 60) -> None:
    """Wait until so many more requests have been served in full."""
    wanted = load.ledger.outcomes["ok"] + num_requests
    async with asyncio.timeout(limit_s):
        while load.ledger.outcomes["ok"] < wanted and not running.done():
            await asyncio.sleep(0.05)
