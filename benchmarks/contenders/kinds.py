"""All kinds of contenders by name, and how one is started."""

import os
from collections.abc import Callable

from benchmarks.contenders import llama, ours, ours_edge, smg, transformers_serve, vllm_cpu
from benchmarks.contenders.running import Running
from benchmarks.contenders.spec import Spec

OURS = "ours"
START: dict[str, Callable[[Spec, int, Callable[[str], None]], Running]] = {
    OURS: ours.start,
    ours_edge.EDGE: ours_edge.start,
    vllm_cpu.PEER: vllm_cpu.start,
    transformers_serve.PEER: transformers_serve.start,
    llama.PEER: llama.start,
    smg.PEER: smg.start,
}
TEXT_ONLY = (transformers_serve.PEER, ours_edge.EDGE, smg.PEER)
"""Kinds that take no token ids: all contenders of their run are then asked with text."""
ONE_AT_A_TIME = (llama.PEER,)
"""Kinds that are measured at concurrency 1 alone."""


def start(spec: Spec, say: Callable[[str], None] = lambda _: None) -> Running:
    """Start one with a thread per core. Raises Absent and, for a kind or option that there is not, ValueError."""
    if spec.kind not in START:
        raise ValueError(f"{spec.label}: no such contender; there are {', '.join(START)}")
    return START[spec.kind](spec, num_cores(), say)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
