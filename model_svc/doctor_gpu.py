"""The diagnostics of GPUs: what each is, whether it computes rightly, its health, and how fast it is copied to.

Needs torch; `doctor` calls it where torch loads, and the start of a model tier for the GPU that it takes.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model_svc.nvml import GpuHealth, health_of
from model_svc.runner.gpu_check import (
    compute_float32_in_full,
    copy_bandwidth,
    first_line_of,
    pinned_copy_is_right,
    product_is_right,
)
from tokenwire.checks import Check, fail, ok, warn

TORCH_NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NO_GPU = "not checked: no GPU"
SEE = "see whether another process fills the GPU (nvidia-smi) and whether this torch is built for it"


def check_gpus(health: Callable[[str], GpuHealth | str] = health_of) -> list[Check]:
    """Driver, CUDA and every GPU: memory and number formats, a small product on it, health, copies."""
    if torch.cuda.is_available():
        compute_float32_in_full()
        driver = nvidia_driver()
        return [check for index in range(torch.cuda.device_count()) for check in check_gpu(index, driver, health)]
    return [check_absence(), ok("gpu health", NO_GPU), ok("gpu copies", NO_GPU)]


def check_absence() -> Check:
    """Whether it is right that torch finds no GPU."""
    driver = nvidia_driver()
    if not driver:
        return ok("gpu", "none found; models run on the CPU")
    if torch.version.cuda is None:
        fix = "install torch's CUDA build to use the GPU: pip install torch --force-reinstall"
        return warn("gpu", f"NVIDIA driver {driver} is here, but this torch is the CPU build", fix)
    detail = f"NVIDIA driver {driver} and torch for CUDA {torch.version.cuda} do not work together"
    return warn("gpu", detail, "update the driver; in a container pass the GPUs in (docker run --gpus all)")


def check_gpu(index: int, driver: str, health: Callable[[str], GpuHealth | str] = health_of) -> list[Check]:
    """One GPU. Its copies are not tried where it does not compute."""
    properties: Any = torch.cuda.get_device_properties(index)
    found = health(str(getattr(properties, "uuid", "")))
    product = check_product(index, properties, driver, found)
    copies = check_copies(index) if not product.fix else warn(f"gpu {index} copies", "not checked", product.fix)
    return [product, check_health(f"gpu {index} health", found), copies]


def check_product(index: int, properties: Any, driver: str, health: GpuHealth | str) -> Check:
    """What the GPU is, and whether small products on it are right."""
    name = f"gpu {index}"
    capability = (properties.major, properties.minor)
    known = health.driver if isinstance(health, GpuHealth) else driver
    supported = f" (CUDA {health.cuda})" if isinstance(health, GpuHealth) else ""
    detail = (
        f"{properties.name}, compute capability {capability[0]}.{capability[1]}, driver {known or 'unknown'}"
        f"{supported}, torch {torch.__version__} for CUDA {torch.version.cuda}"
    )
    try:
        free, total = torch.cuda.mem_get_info(index)
        detail += f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {', '.join(gpu_dtypes(capability))}"
        wrong = [
            dtype for dtype in gpu_dtypes(capability)
            if dtype != "fp8" and not product_is_right(f"cuda:{index}", TORCH_NAMES[dtype])
        ]  # fmt: skip
    except RuntimeError as error:  # CUDA's errors: no kernel image, out of memory, device in a bad state
        return fail(name, f"{detail}: a small kernel did not run: {first_line_of(error)}", SEE)
    if wrong:
        return fail(name, f"{detail}: a matrix product in {', '.join(wrong)} came out wrong", "check the GPU's health")
    return ok(name, f"{detail}; products right")


def check_health(name: str, health: GpuHealth | str) -> Check:
    """ECC and slowdowns. Serving works with either, until the numbers are wrong."""
    if isinstance(health, str):
        return warn(name, f"not known: {health}", "nothing to do to serve; it would tell ECC errors and throttling")
    ecc = {None: "ECC not told", True: "ECC on", False: "ECC off"}[health.ecc]
    heat = "" if health.temperature_c is None else f", {health.temperature_c} °C"
    if health.uncorrected_errors:
        detail = f"{ecc}, {health.uncorrected_errors} memory errors that could not be corrected{heat}"
        return warn(name, detail, "reset the GPU (nvidia-smi --gpu-reset) or replace it: results may be wrong")
    if health.slowdowns:
        detail = f"{ecc}, clocks held back by {', '.join(health.slowdowns)}{heat}"
        return warn(name, detail, "look at cooling, and at the power limit (nvidia-smi -q -d PERFORMANCE)")
    clocks = "throttling not told" if health.slowdowns is None else "not throttled"
    return ok(name, f"{ecc}, {clocks}{heat}")


def check_copies(index: int) -> Check:
    """Pinned memory, and how fast it is copied."""
    name, device = f"gpu {index} copies", f"cuda:{index}"
    try:
        if not pinned_copy_is_right(device):
            return fail(name, "a copy through pinned memory changed the numbers", "check the GPU's health")
        speed = copy_bandwidth(device)
    except (RuntimeError, MemoryError) as error:
        fix = "raise the limit of locked memory (ulimit -l; docker run --ulimit memlock=-1) and free memory"
        return fail(name, f"pinned memory cannot be used: {first_line_of(error)}", fix)
    return ok(
        name,
        f"from pinned memory {speed.pinned:.1f} GB/s, from pageable {speed.pageable:.1f} GB/s, on the GPU "
        f"{speed.on_device:.0f} GB/s (read and write)",
    )


def gpu_dtypes(capability: tuple[int, int]) -> list[str]:
    """Number formats whose products this compute capability has in hardware (CUDA C++ Programming Guide)."""
    oldest = {"fp32": (0, 0), "fp16": (7, 0), "bf16": (8, 0), "fp8": (8, 9)}
    return [name for name, least in oldest.items() if capability >= least]


def nvidia_driver(version_file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The kernel driver's version, "" where there is none."""
    text = version_file.read_text() if version_file.is_file() else ""
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else ""
