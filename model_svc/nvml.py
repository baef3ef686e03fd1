"""A GPU's health, and what it is doing, as NVIDIA's management library tells it.

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
        handle = _handle_of(uuid)
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return GpuHealth(
            driver=str(pynvml.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            ecc=_told(lambda: bool(pynvml.nvmlDeviceGetEccMode(handle)[0])),
            uncorrected_errors=_num_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            slowdowns=_told(lambda: slowdowns_of(int(_event_reasons(handle)))),
            temperature_c=_temperature_c(handle),
        )
    except pynvml.NVMLError as error:
        return f"NVML does not tell: {error}"
    finally:
        pynvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """What one GPU is doing now; None where it does not tell."""

    utilization: float | None
    """0 to 1."""
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_c: int | None
    sm_clock_hertz: float | None
    memory_clock_hertz: float | None
    slowdowns: tuple[str, ...] | None
    corrected_errors: int | None
    """Since the driver was loaded, as the next."""
    uncorrected_errors: int | None


def readings_of(uuid: str) -> GpuReadings | str:
    """What the GPU with this UUID is doing, or why it is not known. A millisecond or so."""
    if pynvml is None:
        return f"nvidia-ml-py is not installed ({INSTALL})"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML does not start: {error}"
    try:
        handle = _handle_of(uuid)
        memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        return GpuReadings(
            utilization=_told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_watts=_told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            power_limit_watts=_told(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
            temperature_c=_temperature_c(handle),
            sm_clock_hertz=_told(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6),
            memory_clock_hertz=_told(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6),
            slowdowns=_told(lambda: slowdowns_of(int(_event_reasons(handle)))),
            corrected_errors=_num_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            uncorrected_errors=_num_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        )
    except pynvml.NVMLError as error:
        return f"NVML does not tell: {error}"
    finally:
        pynvml.nvmlShutdown()


def slowdowns_of(reasons: int) -> tuple[str, ...]:
    """Names of the bits that mean less speed."""
    return tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit)


def _handle_of(uuid: str) -> Any:
    """The GPU, or the MIG instance, with this UUID, which torch may tell without the kind in front."""
    if uuid.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _num_errors(handle: Any, kind: int) -> int | None:
    return _told(lambda: int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC)))


def _temperature_c(handle: Any) -> int | None:
    return _told(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)))


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
