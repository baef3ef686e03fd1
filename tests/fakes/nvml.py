"""NVIDIA's management library, as far as it is asked, for a GPU that is made up."""

from types import SimpleNamespace
from typing import Any


class FakeNvml(SimpleNamespace):
    """As much of pynvml as is asked for."""

    class NVMLError(Exception):
        pass

    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
    NVML_VOLATILE_ECC, NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 0, 1, 2

    def __init__(self, **changed: Any) -> None:
        self.calls: list[str] = []
        answers: dict[str, Any] = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlSystemGetDriverVersion": "580.65", "nvmlSystemGetCudaDriverVersion_v2": 13010,
            "nvmlDeviceGetEccMode": [1, 1], "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x40, "nvmlDeviceGetTemperature": 88,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=30 * 2**30, total=80 * 2**30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40), "nvmlDeviceGetPowerUsage": 512_000,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000, "nvmlDeviceGetClockInfo": 1980,
        }  # fmt: skip
        for name, answer in (answers | changed).items():
            if answer != "absent":
                setattr(self, name, self._answering(name, answer))

    def _answering(self, name: str, answer: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(f"{name}{arguments}")
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call
