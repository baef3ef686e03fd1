"""How many KV blocks there are: from the setting, or from the memory that is free.

Block ids 0 to num_blocks - 1 all belong to the scheduler's pool; none is set aside for padding (a padded entry of a
block table points at a block of its own row, where a mask hides it).
Knows sizes only; `paged.allocate` makes the cache.
"""

from collections.abc import Sequence

import torch

from model_svc.model.paged import LayerKVSpec
from model_svc.runner.host import available_memory_bytes
from tokenwire.errors import FailedPrecondition

CPU_SHARE = 0.25
"""Of the memory available, what the cache may take on a CPU, whose memory it shares with everything else."""
CPU_MOST_BYTES = 4 * 2**30
GPU_SHARE = 0.85
"""Of the memory free after the weights are loaded; the rest is for activations."""


def num_kv_blocks(
    specs: Sequence[LayerKVSpec],
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kv_memory_bytes: int,
    max_context_tokens: int,
    max_batch_size: int,
) -> int:
    """Blocks to allocate. `kv_memory_bytes` 0: a share of free memory, and never more than a full batch could use.

    Raises FailedPrecondition, with the numbers, when they hold less than one full context or exceed free memory.
    """
    block_bytes = sum(spec.num_bytes(block_size, dtype) for spec in specs)
    context_blocks = -(-max_context_tokens // block_size)
    free_bytes = available_memory_bytes() if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])
    if kv_memory_bytes > free_bytes:
        raise FailedPrecondition(
            f"kv_memory: {mib(kv_memory_bytes)} is more than the {mib(free_bytes)} that {device} has free; lower it",
            reason="KV_MEMORY",
        )
    share = min(int(CPU_SHARE * free_bytes), CPU_MOST_BYTES) if device.type == "cpu" else int(GPU_SHARE * free_bytes)
    num_blocks = min((kv_memory_bytes or share) // block_bytes, max_batch_size * context_blocks)
    if num_blocks < context_blocks:
        wanted = "kv_memory" if kv_memory_bytes else f"a share of the {mib(free_bytes)} free on {device}"
        raise FailedPrecondition(
            f"kv_memory: {mib(kv_memory_bytes or share)} ({wanted}) hold {num_blocks * block_size} positions, but one "
            f"full context has {max_context_tokens} and takes {mib(context_blocks * block_bytes)}; "
            f"raise --kv-memory or lower --max-context-tokens",
            reason="KV_MEMORY",
        )
    return num_blocks


def mib(num_bytes: int) -> str:
    """The size for people."""
    return f"{num_bytes / 2**20:.0f} MiB"
