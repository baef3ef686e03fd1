"""How many KV blocks there are: from the setting, or from the memory that is free.

Block ids 0 to num_blocks - 1 all belong to the scheduler's pool; none is set aside for padding (a padded entry of a
block table points at a block of its own row, where a mask hides it).
Knows sizes only; `paged.allocate` makes the cache.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_svc.model.paged import LayerKVSpec
from model_svc.runner.memory import free_memory_bytes, mib
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)

LEAST_CONTEXT_TOKENS = 2048
"""The shortest context that is chosen where nobody asked for one; a model that is cut further is better refused."""
CPU_SHARE = 0.25
"""Of the memory available, what the cache may take on a CPU, whose memory it shares with everything else."""
CPU_MOST_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class KVSize:
    """How large the cache is, and the longest context it serves."""

    num_blocks: int
    max_context_tokens: int


def kv_size(
    specs: Sequence[LayerKVSpec],
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kv_memory_bytes: int,
    max_context_tokens: int,
    context_is_wish: bool,
    max_batch_size: int,
    gpu_memory_share: float = 0.9,
    activation_bytes: int = 0,
) -> KVSize:
    """Blocks to allocate. `kv_memory_bytes` 0: a share of free memory, and never more than a full batch could use.

    On a GPU that is `gpu_memory_share` of what is free once the weights are loaded, less the `activation_bytes` that
    the largest step takes besides.
    `context_is_wish`: nobody asked for `max_context_tokens`, it is what the model could do; where memory holds less,
    the context is what it holds, down to LEAST_CONTEXT_TOKENS. Raises FailedPrecondition, with the numbers, when the
    memory holds less than that, or exceeds what is free.
    """
    block_bytes = sum(spec.num_bytes(block_size, dtype) for spec in specs)
    context_blocks = -(-max_context_tokens // block_size)
    free_bytes = free_memory_bytes(device)
    if kv_memory_bytes + activation_bytes > free_bytes:
        step = f" and the {mib(activation_bytes)} of the largest step are" if activation_bytes else " is"
        raise FailedPrecondition(
            f"kv_memory: {mib(kv_memory_bytes)}{step} more than the {mib(free_bytes)} that {device} has free; lower it",
            reason="KV_MEMORY",
        )
    if device.type == "cpu":
        share = min(int(CPU_SHARE * free_bytes), CPU_MOST_BYTES)
    else:
        share = max(0, int(gpu_memory_share * free_bytes) - activation_bytes)
    num_blocks = min((kv_memory_bytes or share) // block_bytes, max_batch_size * context_blocks)
    if num_blocks >= context_blocks:
        return KVSize(num_blocks, max_context_tokens)
    wanted = "kv_memory" if kv_memory_bytes else f"a share of the {mib(free_bytes)} free on {device}"
    held = f"{mib(kv_memory_bytes or share)} ({wanted}) hold {num_blocks * block_size} positions"
    full = f"one full context has {max_context_tokens} and takes {mib(context_blocks * block_bytes)}"
    if context_is_wish and num_blocks * block_size >= LEAST_CONTEXT_TOKENS:
        log.warning("kv_memory: %s, but %s; requests may have %d", held, full, num_blocks * block_size)
        return KVSize(num_blocks, num_blocks * block_size)
    raise FailedPrecondition(
        f"kv_memory: {held}, but {full}; raise --kv-memory or lower --max-context-tokens", reason="KV_MEMORY"
    )
