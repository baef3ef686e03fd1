"""A real call of an attention backend on a small step, compared with the reference. Knows no model."""

import numpy as np
import torch

from model_svc.model.attention import AttentionBackend, AttentionOptions, SdpaBackend
from model_svc.model.paged import LayerKVSpec, allocate, plan_step, query_starts_of

ROWS = ((36, 1), (4, 1), (20, 9), (0, 17))
"""Tokens computed and new, of each row of the step: decodes and chunks, in `row_order`."""
SPEC = LayerKVSpec(num_kv_heads=2, key_size=64, value_size=64)
NUM_HEADS = 8
TOLERANCE = 1e-2
"""Largest |difference| / |wanted|, as vectors; fp16 explains a tenth of it."""


@torch.inference_mode()
def failure_of(backend: AttentionBackend, device: torch.device, block_size: int) -> str | None:
    """Why `backend` cannot be used on `device`, None if it gives the right numbers. Waits for the device."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    computed, new = (np.array(column, dtype=np.int64) for column in zip(*ROWS, strict=True))
    blocks_each = -(-int((computed + new).max()) // block_size)
    # Blocks in descending order, so that a backend that ignores the table is found out.
    table = np.arange(len(ROWS) * blocks_each, dtype=np.int64)[::-1].reshape(len(ROWS), blocks_each)
    kv = allocate([SPEC], table.size, block_size, dtype, device)
    layer = kv.layers[0]
    generator = torch.Generator().manual_seed(0)
    for cache in (layer.key, layer.value):
        cache.copy_(torch.randn(cache.shape, generator=generator))
    num_tokens = int(new.sum())
    query = torch.randn(1, NUM_HEADS, num_tokens, SPEC.key_size, generator=generator).to(device, dtype)
    position = np.concatenate([np.arange(c, c + n) for c, n in ROWS])
    slots = table[np.repeat(np.arange(len(ROWS)), new), position // block_size] * block_size + position % block_size
    on_device = [
        torch.from_numpy(np.ascontiguousarray(values)).to(device)
        for values in (slots, table, computed + new, query_starts_of(new))
    ]
    step = plan_step(kv, computed, new, *on_device)
    key, value = (cache[step.slots].transpose(0, 1)[None] for cache in (layer.key_slots, layer.value_slots))
    options = AttentionOptions(scale=None, window=None, softcap=None, sinks=None)
    wanted = SdpaBackend().attend(query, key, value, layer, step, options).float()
    try:
        found = backend.attend(query, key, value, layer, step, options).float()
        difference = float((found - wanted).norm() / wanted.norm())
    except Exception as error:  # compilers, drivers and kernels raise what they like, and each means the same here
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return f"a trial call failed: {type(error).__name__}: {first_line}"
    return None if difference <= TOLERANCE else f"a trial call differs from the reference by {difference:.2g}"
