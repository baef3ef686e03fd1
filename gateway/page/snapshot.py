"""What the live view shows, as plain JSON values: this process, the tokenizer tiers, and the model tiers behind them.

Made from what is known at this moment. Model tiers are told apart by their engine's epoch, since several tokenizer
tiers know the same ones. Prompts are numbered; nothing says whose they are or what is in them.
"""

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.backend import Backend
from gateway.backends import Backends
from gateway.page.recent import Ended, Recent
from gateway.submission import Submission
from tokenwire.v1 import common_pb2, tokenizer_pb2

MAX_ROWS = 64
"""Prompts that are shown one by one."""

TierLoad = tuple[Backend, tokenizer_pb2.GetTierLoadResponse | None]
"""A tokenizer tier and what it answered; None: nothing."""


def snapshot(backends: Backends, recent: Recent, loads: Sequence[TierLoad], *, with_addresses: bool) -> dict[str, Any]:
    """All that is shown. `with_addresses`: tiers are named by them, else by numbers alone."""
    now_s = time.monotonic()
    return {
        "gateway": {
            "open": backends.num_open,
            "max_open": backends.room.max_outputs,
            "missing": backends.missing() if with_addresses or not backends.missing() else "no tier is ready",
        },
        "requests": [_open(each, now_s) for each in itertools.islice(backends.submissions, MAX_ROWS)],
        "recent": [_ended(each, now_s) for each in recent],
        "tokenizer_tiers": [_tokenizer_tier(*each, with_addresses) for each in loads],
        "model_tiers": _model_tiers((load for _, load in loads if load is not None), with_addresses),
    }


def _open(submission: Submission, now_s: float) -> dict[str, Any]:
    return {
        "number": submission.number,
        "answering": submission.started,
        "tokens": sum(choice.num_tokens for choice in submission.choices),
        "choices": len(submission.choices),
        "age_s": round(now_s - submission.context.arrival_s, 3),
        "priority": submission.context.priority,
    }


def _ended(ended: Ended, now_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "number": ended.number,
        "reason": ended.reason,
        "prompt_tokens": ended.usage.prompt_tokens,
        "cached_tokens": ended.usage.cached_tokens,
        "completion_tokens": ended.usage.completion_tokens,
        "ago_s": round(now_s - ended.ended_s, 3),
        "total_s": round(ended.total_s, 6),
    }
    if ended.tokenizer is not None:
        found["tokenizer_s"] = round(ended.tokenizer.queue_s + ended.tokenizer.tokenize_s, 6)
        found["first_frame_s"] = round(ended.tokenizer.first_frame_s, 6)
    if ended.model is not None:
        found["queue_s"] = round(ended.model.queue_s, 6)
        found["prefill_s"] = round(ended.model.prefill_s, 6)
        found["decode_s"] = round(ended.model.decode_s, 6)
    return found


def _tokenizer_tier(
    backend: Backend, load: tokenizer_pb2.GetTierLoadResponse | None, with_addresses: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {"state": backend.state, "open_here": backend.num_open, "told": load is not None}
    if with_addresses:
        found["target"] = backend.target
    if load is not None:
        found |= {"running": load.running, "held": load.held, "oldest_held_s": load.oldest_held_us / 1e6}
    return found


def _model_tiers(loads: Iterable[tokenizer_pb2.GetTierLoadResponse], with_addresses: bool) -> list[dict[str, Any]]:
    """Each once, as the tokenizer tier knows it that heard its latest step."""
    latest: dict[tuple[str, int], tokenizer_pb2.ModelTierLoad] = {}
    for load in loads:
        for tier in load.model_tiers:
            key = ("", tier.epoch) if tier.epoch else (tier.target, 0)
            known = latest.get(key)
            if known is None or known.load.step < tier.load.step:
                latest[key] = tier
    return [_model_tier(tier, with_addresses) for tier in latest.values()]


def _model_tier(tier: tokenizer_pb2.ModelTierLoad, with_addresses: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"state": tier.state, "credit": tier.credit, "epoch": str(tier.epoch)}
    if with_addresses:
        found["target"] = tier.target
    if tier.HasField("load"):
        found |= {field.name: getattr(tier.load, field.name) for field in common_pb2.Load.DESCRIPTOR.fields}
    return found
