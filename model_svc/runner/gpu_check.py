"""Whether a GPU computes and copies as it should, by small trials. Used at start and by the diagnostics.

Knows devices and number formats; knows no model.
"""

import time
from dataclasses import dataclass

import torch

from tokenwire.errors import FailedPrecondition

COPY_BYTES = 256 * 2**20
COPY_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Copies of COPY_BYTES, in GB/s (10⁹ bytes); `on_device` counts what is read and what is written."""

    pinned: float
    """From pinned memory of the host."""
    pageable: float
    on_device: float


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
    """How fast memory is copied to and on `device`."""
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(target)
    pageable = torch.ones(COPY_BYTES, dtype=torch.uint8)
    return Bandwidth(
        pinned=_gb_per_s(target, pageable.pin_memory()),
        pageable=_gb_per_s(target, pageable),
        on_device=2 * _gb_per_s(target, other),
    )


def _gb_per_s(target: torch.Tensor, source: torch.Tensor) -> float:
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(target.device)
    started_s = time.perf_counter()
    for _ in range(COPY_REPEATS):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(target.device)
    return COPY_REPEATS * target.nbytes / (time.perf_counter() - started_s) / 1e9


def check_gpu(device: torch.device, dtype: str) -> None:
    """The essential trials, before weights are loaded. `dtype` as in the settings: bf16 is tried where it may be run.

    Raises FailedPrecondition with reason DEVICE_UNUSABLE, saying what went wrong and what to do.
    """
    name = str(device)
    formats = [torch.float32] + ([torch.bfloat16] if dtype in ("auto", "bfloat16") else [])
    try:
        for each in formats:
            if not product_is_right(name, each):
                raise _unusable(name, f"a small matrix product in {each} came out wrong", "check the GPU's health")
        if not pinned_copy_is_right(name):
            raise _unusable(name, "a copy through pinned memory changed the numbers", "check the GPU's health")
    except (RuntimeError, MemoryError) as error:  # no kernel image, out of memory, device in a bad state, no pinning
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "see whether another process fills the GPU, this torch is built for it and memory may be locked"
        raise _unusable(name, f"a small kernel or a pinned allocation failed: {reason}", fix) from error


def _unusable(name: str, detail: str, fix: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"device: {name} cannot be used: {detail}; {fix} (python -m model_svc doctor tells more)",
        reason="DEVICE_UNUSABLE",
    )
