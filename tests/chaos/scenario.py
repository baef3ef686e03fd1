"""A fault under load, and what came of it: what clients saw, and how long it took to serve again."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from tests.chaos.stack import ChaosStack
from tests.fakes.load import Load
from tokenwire.client import AsyncClient
from tokenwire.errors import TokenwireError
from tokenwire.tasks import cancel_and_wait
from tokenwire.tls import ClientTls

BEGIN, END = "<!-- faults: made by make chaos -->\n", "<!-- end of faults -->\n"
PROBE_TIMEOUT_S = 2.0
BETWEEN_PROBES_S = 0.05
WARM_REQUESTS = 24
STILL_SERVING_REQUESTS = 24


@dataclass
class Row:
    """One line of the table in docs/reliability.md."""

    fault: str
    expected: str
    seen: str
    serves_again_s: float | None
    """From the fault's beginning until a new request was served in full, and those after it. None: it is for whoever
    mends the cause to say."""

    @property
    def cells(self) -> list[str]:
        again = "—" if self.serves_again_s is None else f"{self.serves_again_s:.1f} s"
        return [self.expected, self.seen, again]


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
    head = "| Fault | Expected | Seen | Serves again after |\n| --- | --- | --- | --- |\n"
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

    @property
    def expected(self) -> str:
        """What is promised, as the table says it."""
        ends = f"in full, or {', '.join(sorted(self.allowed))}" if self.allowed else "in full"
        when = "meanwhile" if self.serves_meanwhile else "afterwards"
        return f"{ends}; new ones {when}, within {self.serves_again_within_s:g} s"


async def probe(target: str, tls: ClientTls | None = None) -> bool:
    """Whether a new request on a new connection is served in full."""
    try:
        async with AsyncClient(target, tls=tls, max_attempts=1) as client:
            (output,) = await client.generate("A probe", max_tokens=5, timeout_s=PROBE_TIMEOUT_S).outputs()
        return output.error is None and output.terminal.usage.completion_tokens == 5
    except (TokenwireError, grpc.RpcError):
        return False


async def serves_again(ask: Callable[[], Awaitable[bool]], settled: asyncio.Event, within_s: float) -> float:
    """Ask, time after time from now on, until one that was asked when it was `settled` is answered.

    Returns the seconds from now to the first answer after which nothing went unanswered. AssertionError where none
    comes `within_s` after it was settled.
    """
    began_s = time.monotonic()
    again_s, settled_s = math.inf, math.inf
    while True:
        asked_s = time.monotonic()
        if settled.is_set():
            settled_s = min(settled_s, asked_s)
        assert asked_s - settled_s < within_s, f"does not serve again within {within_s} s"
        again_s = min(again_s, time.monotonic() - began_s) if await ask() else math.inf
        if asked_s >= settled_s and again_s < math.inf:
            return again_s
        await asyncio.sleep(BETWEEN_PROBES_S)


async def under_load(stack: ChaosStack, fault: Fault, width: int = 2) -> Row:
    """Begin the fault under load, wait until the stack serves, end it, and see that everything is as before."""
    load = Load([stack.target], [stack.http_url], may_cut=fault.may_cut)
    await load.learn()
    running = asyncio.ensure_future(load.run(width))
    try:
        await load.until_served(WARM_REQUESTS, running)
        took_s = await suffer(stack, fault)
        await load.until_served(STILL_SERVING_REQUESTS, running)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{stack.logs()[-6000:]}") from error
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
    return Row(fault.name, fault.expected, f"{ledger.seen()}; the longest took {ledger.longest_s:.1f} s", took_s)


async def suffer(stack: ChaosStack, fault: Fault) -> float:
    """The fault from its beginning to its end. Returns how long it took to serve again, from its beginning."""
    settled = asyncio.Event()
    began_s = time.monotonic()
    again = asyncio.ensure_future(serves_again(partial(probe, stack.target), settled, fault.serves_again_within_s))
    try:
        await asyncio.to_thread(fault.begin, stack)
        if not fault.serves_meanwhile:
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(fault.end, stack)
        settled.set()
        took_s = await again
        if fault.serves_meanwhile:
            await asyncio.sleep(fault.lasts_s - (time.monotonic() - began_s))
            await asyncio.to_thread(fault.end, stack)
        return took_s
    finally:
        await cancel_and_wait(again)
