"""What the device can do at best: reading, copying, multiplying, and copies from the host. Everything is held to it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu_suite.report import Report, tolerating
from benchmarks.gpu_suite.shapes import synchronize
from model_svc.runner.gpu_check import copy_bandwidth

REPEATS = 10


def best_s(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The shortest of some runs, after two that do not count."""
    seconds: list[float] = []
    for number in range(repeats + 2):
        synchronize(device)
        started_s = time.perf_counter()
        work()
        synchronize(device)
        if number >= 2:
            seconds.append(time.perf_counter() - started_s)
    return min(seconds)


def measure_ceilings(report: Report, device: torch.device, dtype: torch.dtype, quick: bool) -> None:
    """Enter `read`, `copy` and `matmul`, and on a GPU `host_copies`."""
    num_bytes = 2**26 if quick else min(4 * 2**30, free_bytes(device) // 4)
    with tolerating(), report.measuring("read"):
        data = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
        reductions: dict[str, Callable[[], Tensor]] = {"sum": lambda: data.sum(), "amax": lambda: data.amax()}
        speeds = {name: data.nbytes / best_s(work, device) / 1e9 for name, work in reductions.items()}
        report.add("read", gb_per_s=max(speeds.values()), by=speeds, bytes=data.nbytes)
    with tolerating(), report.measuring("copy"):
        source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        speed = 2 * source.nbytes / best_s(lambda: target.copy_(source), device) / 1e9
        report.add("copy", gb_per_s=speed, bytes=source.nbytes, counts="bytes read and bytes written")
    with tolerating(), report.measuring("matmul"):
        size = 512 if quick else 8192
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = best_s(lambda: torch.matmul(a, b), device)
        report.add("matmul", tflop_per_s=2 * size**3 / seconds / 1e12, size=size, dtype=str(dtype))
    if device.type == "cuda":
        with tolerating(), report.measuring("host_copies"):
            speed_to = copy_bandwidth(str(device))
            report.add("host_copies", pinned_gb_per_s=speed_to.pinned, pageable_gb_per_s=speed_to.pageable)


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU as much as is wanted here."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 4 * 2**28
