"""Whether a GPU computes and copies as it should, by small trials: the diagnostics are made of them.

Knows devices and number formats; knows no model.
"""

import time
from dataclasses import dataclass

import torch

COPY_BYTES = 64 * 2**20
"""Between host and device."""
DEVICE_COPY_BYTES = 256 * 2**20
"""On the device: more than its caches hold."""
COPY_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Of copies, in GB/s (10⁹ bytes); `on_device` counts what is read and what is written."""

    pinned: float
    """From pinned memory of the host."""
    pageable: float
    on_device: float


def compute_float32_in_full() -> None:
    """From now on this process multiplies float32 in float32, not in TF32, which has ten bits of the mantissa.

    Without it products are made in TF32 where the environment has TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, as NVIDIA's
    images have: that is what torch starts with, and is outranked by what is set here. These setters set what torch's
    newer ones do (`fp32_precision`) too; to mix the two in one process makes torch's getters fail.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def product_is_right(device: str, dtype: torch.dtype) -> bool:
    """Whether a 64×64 product on `device` in `dtype` agrees with the float64 product of the same numbers."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(64, 64, generator=generator).to(dtype) for _ in range(2))
    exact = a.double() @ b.double()
    found = (a.to(device) @ b.to(device)).cpu().double()
    return torch.allclose(found, exact, rtol=4 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)


def pinned_copy_is_right(device: str) -> bool:
    """Whether numbers come back unchanged from a copy up and down through pinned memory."""
    sent = torch.arange(1024, dtype=torch.int64, pin_memory=True)
    received = torch.empty(1024, dtype=torch.int64, pin_memory=True)
    received.copy_(sent.to(device, non_blocking=True), non_blocking=True)
    torch.cuda.synchronize(device)
    return bool(torch.equal(sent, received))


def copy_bandwidth(device: str) -> Bandwidth:
    """How fast memory is copied to and on `device`. Takes 512 MiB of it meanwhile."""
    target, other = (torch.empty(DEVICE_COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    pageable = torch.ones(COPY_BYTES, dtype=torch.uint8)
    speed = Bandwidth(
        pinned=_gb_per_s(target[:COPY_BYTES], pageable.pin_memory()),
        pageable=_gb_per_s(target[:COPY_BYTES], pageable),
        on_device=2 * _gb_per_s(target, other),
    )
    del target, other
    torch.cuda.empty_cache()
    return speed


def _gb_per_s(target: torch.Tensor, source: torch.Tensor) -> float:
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(target.device)
    started_s = time.perf_counter()
    for _ in range(COPY_REPEATS):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(target.device)
    return COPY_REPEATS * target.nbytes / (time.perf_counter() - started_s) / 1e9


def first_line_of(error: RuntimeError | MemoryError) -> str:
    """What CUDA or an allocator said, without the advice below it."""
    return (str(error).splitlines() or [type(error).__name__])[0]
