"""How many connections and streams a stack holds at once, and what memory each takes. Opens nothing itself."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.capacity_suite.holders import GrpcConnections, GrpcStreams, Holder, HttpConnections, HttpStreams
from benchmarks.compare import say
from benchmarks.loadgen.loops import in_loop
from benchmarks.mock_stack import MockStack, mock_stack

TIERS = ("gateway", "tokenizer_svc", "model_svc")
SETTLE_S = 3.0
"""How long all must have stayed before they count."""
OPENS_S = 60.0
"""How long streams may take until the gateway counts them."""
LONG_S = 3600
STREAM_STEP_MS = 2000.0
"""From one token of a held stream to the next: what is asked is how many stay, not how fast they are."""
MOST_IN_A_BATCH = 4096
"""What a model tier computes at once; streams past that have no text yet."""
CONNECTIONS: dict[str, Callable[[MockStack], Holder]] = {
    "idle connections, HTTP": HttpConnections,
    "idle connections, gRPC": GrpcConnections,
}
STREAMS: dict[str, Callable[[MockStack], Holder]] = {
    "streams, HTTP": HttpStreams,
    "streams, gRPC on one connection": GrpcStreams,
}


def settings(num_streams: int) -> dict[str, str | int | float]:
    """Of a stack that can hold so many."""
    return {
        "gateway_idle_timeout_s": LONG_S,
        "gateway_max_concurrent_requests": 2 * num_streams,
        "tokenizer_max_requests": 2 * num_streams,
        "tokenizer_max_held_requests": 2 * num_streams,
        "model_max_queued_requests": 2 * num_streams,
        "model_max_batch_size": min(MOST_IN_A_BATCH, num_streams),
        "model_mock_step_ms": STREAM_STEP_MS,
        "model_mock_prefill_tokens_per_s": 1e6,
    }


async def held(stack: MockStack, kind: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each count, which grow; all are given up at the end."""
    rows: list[dict[str, Any]] = []
    before = await asyncio.to_thread(memory, stack)
    holder = (CONNECTIONS | STREAMS)[kind](stack)
    try:
        for count in counts:
            await holder.grow(count)
            if kind in STREAMS:
                await until_open(stack, holder)
            await asyncio.sleep(SETTLE_S)
            rows.append(row(kind, count, holder, before, await asyncio.to_thread(memory, stack)))
            say(f"{kind}: {rows[-1]['held']} of {count} held")
    finally:
        await holder.close()
    return rows


async def until_open(stack: MockStack, holder: Holder) -> None:
    """Wait until the gateway has all that is held, at most `OPENS_S`."""
    ends_s = time.monotonic() + OPENS_S
    while time.monotonic() < ends_s:
        if await asyncio.to_thread(stack.metric, "tokenwire_gateway_open_streams") >= holder.num_held():
            return
        await asyncio.sleep(0.2)


def memory(stack: MockStack) -> dict[str, int]:
    """Resident bytes by tier."""
    return {tier: stack.tier_rss_bytes(tier) for tier in TIERS}


def row(kind: str, asked: int, holder: Holder, before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, Any]:
    """What is held now, and what each of them has added to each tier's memory."""
    num_held = holder.num_held()
    kib = {tier: round((now[tier] - before[tier]) / 1024 / num_held, 1) if num_held else None for tier in before}
    return {"kind": kind, "asked": asked, "held": num_held, "kib_each": kib, "lost": dict(holder.lost)}


def hold(kind: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of one kind, on a stack of its own, so that no other kind's memory is counted."""
    with mock_stack(**settings(max(counts))) as stack:
        return in_loop(held(stack, kind, counts))
