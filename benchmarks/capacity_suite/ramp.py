"""More and more requests until one is refused, and how soon one is served as usual when far too many have come.

The stack is that of `benchmarks.overload`, whose engine is the bottleneck and whose gateway lets in two batches.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any

from benchmarks.loadgen.arrivals import poisson
from benchmarks.loadgen.http_stream import ConnectionPool
from benchmarks.overload import Seen, ask

FROM_SHARE, TO_SHARE = 0.5, 3.0
"""Of the capacity: where the ramp begins and ends."""
OVERLOAD_FACTOR = 10
AS_USUAL = 1.5
"""A request is served as usual when it takes at most so many times what it takes alone."""
NUM_ALONE = 5
PAUSE_S = 0.02
RECOVERS_S = 60.0


def rate_at(full: float, at_s: float, seconds: float) -> float:
    """Requests a second of a ramp of so many seconds over a capacity of `full`."""
    return full * (FROM_SHARE + (TO_SHARE - FROM_SHARE) * at_s / seconds)


def ramp_arrivals(full: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """When each request is due, in seconds: a Poisson process whose rate grows."""
    rng, at_s = random.Random(f"ramp/{seed}"), 0.0
    while (at_s := at_s + rng.expovariate(rate_at(full, at_s, seconds))) < seconds:
        yield at_s


async def send(
    pool: ConnectionPool, seen: Seen, due_s: Iterable[float], enough: Callable[[], bool] = lambda: False
) -> set[asyncio.Task[None]]:
    """Ask when it is due, until `enough`; returns what has not been answered yet."""
    tasks, began_s = set[asyncio.Task[None]](), time.perf_counter()
    for each_s in due_s:
        await asyncio.sleep(max(0.0, began_s + each_s - time.perf_counter()))
        if enough():
            break
        task = asyncio.create_task(ask(pool, seen))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    return tasks


async def ramp(pool: ConnectionPool, full: float, seconds: float) -> dict[str, Any]:
    """The rate at which the first request was refused; None: none was."""
    seen, began_s = Seen(), time.perf_counter()
    left = await send(pool, seen, ramp_arrivals(full, seconds), lambda: bool(seen.refused_s))
    rate = rate_at(full, time.perf_counter() - began_s, seconds) if seen.refused_s else None
    await asyncio.gather(*left)
    return {
        "first_refusal_at_requests_per_s": rate and round(rate, 1),
        "first_refusal_share_of_capacity": rate and round(rate / full, 2),
        "served_in_the_ramp": len(seen.served_at_s),
        "other_outcomes": dict(seen.others),
    }


async def recover(pool: ConnectionPool, full: float, seconds: float) -> dict[str, Any]:
    """Far too many for so long; then one at a time, until one is served as usual. None: that took too long."""
    usual_s = median([took_s for _ in range(NUM_ALONE) if (took_s := await alone(pool)) is not None])
    rate = OVERLOAD_FACTOR * full
    due_s = (at_s for at_s in poisson(rate, int(2 * rate * seconds) + 10, seed=0) if at_s < seconds)
    left = await send(pool, seen := Seen(), due_s)
    over_s, recovered_s = time.perf_counter(), None
    while recovered_s is None and time.perf_counter() - over_s < RECOVERS_S:
        took_s = await alone(pool)
        if took_s is not None and took_s <= AS_USUAL * usual_s:
            recovered_s = time.perf_counter() - over_s
        await asyncio.sleep(PAUSE_S)
    await asyncio.gather(*left)
    return {
        "refused_in_the_overload": len(seen.refused_s),
        "alone_ms": round(1000 * usual_s, 1),
        "served_as_usual_after_ms": None if recovered_s is None else round(1000 * recovered_s),
        "other_outcomes": dict(seen.others),
    }


async def alone(pool: ConnectionPool) -> float | None:
    """Seconds that one request takes now; None: it was refused."""
    seen, began_s = Seen(), time.perf_counter()
    await ask(pool, seen)
    return seen.served_at_s[0] - began_s if seen.served_at_s else None
