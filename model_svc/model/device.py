"""Which device and which number format a model runs in. Knows the hardware's abilities; knows no model."""

import platform
from pathlib import Path
from typing import Any

import torch

from tokenwire.errors import FailedPrecondition

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there; raises FailedPrecondition."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device: torch.device | None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (name != "cpu" and device.type != "cuda"):
        raise FailedPrecondition(
            f"device: {name!r} is not allowed: cpu, cuda, cuda:N or auto", reason="DEVICE_UNAVAILABLE"
        )
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        fix = "install torch's CUDA build, as this is one for CPUs"
        if torch.version.cuda is not None:
            fix = f"see that nvidia-smi lists a GPU here and a driver for CUDA {torch.version.cuda} or newer"
        raise FailedPrecondition(
            f"device: {name!r} was asked for, but torch {torch.__version__} finds no CUDA device; "
            f"{fix}, or use --device cpu",
            reason="DEVICE_UNAVAILABLE",
        )
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise FailedPrecondition(
            f"device: {name!r} does not exist: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            reason="DEVICE_UNAVAILABLE",
        )
    return torch.device("cuda", index)


def gpu_uuids(*devices: torch.device) -> tuple[str, ...]:
    """By which the driver knows these devices; of GPUs alone."""
    properties: list[Any] = [torch.cuda.get_device_properties(each) for each in devices if each.type == "cuda"]
    return tuple(str(each.uuid) for each in properties)


def resolve_dtype(name: str, device: torch.device, checkpoint: torch.dtype | None) -> torch.dtype:
    """The dtype to run in. `auto`: the checkpoint's on a GPU; on a CPU bf16 where it has the instructions, or fp32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    return checkpoint if checkpoint is not None and checkpoint in DTYPES.values() else torch.float32


def cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16, AMX, Arm's BF16) and torch has oneDNN to use it.

    torch's own `_is_mkldnn_bf16_supported` is also true where oneDNN merely emulates bf16, which is slower than fp32.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    arm = platform.machine() in ("aarch64", "arm64")
    label, wanted = ("Features", {"bf16"}) if arm else ("flags", {"avx512_bf16", "amx_bf16"})
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == label:
            return bool(wanted & set(value.split()))
    return False
