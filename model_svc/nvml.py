"""A GPU's health as NVIDIA's management library tells it: driver, ECC, what holds its clocks back.

The binding (PyPI's `nvidia-ml-py`, extra `gpu`) is optional: without it there is a reason in place of facts. Knows
nothing of torch; a GPU is found by its UUID, because the library counts GPUs that CUDA_VISIBLE_DEVICES hides.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

pynvml: Any = importlib.import_module("pynvml") if find_spec("pynvml") else None

T = TypeVar("T")

INSTALL = "pip install 'tokenwire[gpu]'"
SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons that mean less speed than the GPU has (NVML API reference)."""


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """What the library says of one GPU; None where this GPU does not tell."""

    driver: str
    cuda: str
    """The newest CUDA that the driver supports."""
    ecc: bool | None
    uncorrected_errors: int | None
    """Memory errors that ECC found and could not correct since the driver was loaded."""
    slowdowns: tuple[str, ...] | None
    """What holds the clocks back now."""
    temperature_c: int | None


def health_of(uuid: str) -> GpuHealth | str:
    """The health of the GPU with this UUID, or why it is not known."""
    if pynvml is None:
        return f"nvidia-ml-py is not installed ({INSTALL})"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML does not start: {error}"
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return GpuHealth(
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            ecc=_told(lambda: bool(pynvml.nvmlDeviceGetEccMode(handle)[0])),
            uncorrected_errors=_told(
                lambda: int(
                    pynvml.nvmlDeviceGetTotalEccErrors(
                        handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
                    )
                )
            ),
            slowdowns=_told(lambda: slowdowns_of(int(_event_reasons(handle)))),
            temperature_c=_told(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        )
    except pynvml.NVMLError as error:
        return f"NVML does not tell: {error}"
    finally:
        pynvml.nvmlShutdown()


def slowdowns_of(reasons: int) -> tuple[str, ...]:
    """Names of the bits that mean less speed."""
    return tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit)


def _event_reasons(handle: Any) -> int:
    """Bindings before 12.535 have the call under its old name."""
    newer = getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons: int = (newer or pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle)
    return reasons


def _told(ask: Callable[[], T]) -> T | None:
    """The answer, or None where this GPU or driver has none."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None
