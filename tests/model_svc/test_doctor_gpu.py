"""The diagnostics of GPUs, on GPUs made up: torch's facts, NVML's facts, and everything that may fail."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model_svc import doctor_gpu, nvml
from model_svc.nvml import GpuHealth, health_of
from model_svc.runner.gpu_check import Bandwidth
from tests.fakes.nvml import FakeNvml
from tokenwire.checks import Status

WELL = GpuHealth("580.65", "13.0", True, 0, (), 41)
UUID = "aaaa-bbbb"


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 that computes and copies."""
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (130 * 2**30, 140 * 2**30))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor_gpu, "product_is_right", lambda device, dtype: True)
    monkeypatch.setattr(doctor_gpu, "pinned_copy_is_right", lambda device: True)
    monkeypatch.setattr(doctor_gpu, "copy_bandwidth", lambda device: Bandwidth(54.26, 11.0, 4123.4))
    monkeypatch.setattr(doctor_gpu, "nvidia_driver", lambda: "580.65")


def test_a_machine_without_a_gpu_says_so_in_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_gpu, "nvidia_driver", lambda: "")
    checks = doctor_gpu.check_gpus()
    assert {check.status for check in checks} == {Status.OK}
    assert [(check.name, check.detail) for check in checks] == [
        ("gpu", "none found; models run on the CPU"),
        ("gpu health", "not checked: no GPU"),
        ("gpu copies", "not checked: no GPU"),
    ]


def test_a_gpu_beside_a_cpu_build_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor_gpu, "nvidia_driver", lambda: "570.86")
    assert doctor_gpu.check_gpus()[0].status is Status.WARN
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "do not work together" in doctor_gpu.check_gpus()[0].detail


def test_a_gpu_that_is_well(a_gpu: None) -> None:
    asked: list[str] = []

    def health(uuid: str) -> GpuHealth:
        asked.append(uuid)
        return WELL

    gpu, state, copies = doctor_gpu.check_gpus(health)
    assert asked == [UUID]
    assert {check.status for check in (gpu, state, copies)} == {Status.OK}
    assert gpu.detail == (
        f"NVIDIA H200, compute capability 9.0, driver 580.65 (CUDA 13.0), torch {torch.__version__} for CUDA 13.0, "
        "130.0 of 140.0 GiB free, fp32, fp16, bf16, fp8; products right"
    )
    assert state.detail == "ECC on, not throttled, 41 °C"
    assert copies.detail == (
        "from pinned memory 54.3 GB/s, from pageable 11.0 GB/s, on the GPU 4123 GB/s (read and write)"
    )


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        (GpuHealth("1", "13.0", True, 3, (), 90), "3 memory errors that could not be corrected, 90 °C"),
        (GpuHealth("1", "13.0", False, None, ("power cap",), None), "ECC off, clocks held back by power cap"),
        ("nvidia-ml-py is not installed (pip install 'tokenwire[gpu]')", "not known: nvidia-ml-py is not installed"),
    ],
)
def test_what_is_worth_a_warning(a_gpu: None, health: GpuHealth | str, expected: str) -> None:
    gpu, state, _ = doctor_gpu.check_gpus(lambda uuid: health)
    assert (gpu.status, state.status) == (Status.OK, Status.WARN)
    assert expected in state.detail and state.fix


def test_what_a_gpu_does_not_tell_is_no_warning(a_gpu: None) -> None:
    state = doctor_gpu.check_gpus(lambda uuid: GpuHealth("1", "13.0", None, None, None, None))[1]
    assert (state.status, state.detail) == (Status.OK, "ECC not told, throttling not told")


def failing(*_: Any) -> bool:
    raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")


def without_a_word(device: str) -> bool:
    raise MemoryError


def test_a_gpu_that_does_not_compute_blocks_serving(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_gpu, "product_is_right", failing)
    gpu, _, copies = doctor_gpu.check_gpus(lambda uuid: WELL)
    assert gpu.status is Status.FAIL and gpu.detail.endswith("did not run: CUDA error: no kernel image is available")
    assert (copies.status, copies.detail) == (Status.WARN, "not checked")
    monkeypatch.setattr(doctor_gpu, "product_is_right", lambda device, dtype: dtype is not torch.bfloat16)
    assert "a matrix product in bf16 came out wrong" in doctor_gpu.check_gpus(lambda uuid: WELL)[0].detail


def test_no_pinned_memory_blocks_serving(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_gpu, "pinned_copy_is_right", failing)
    copies = doctor_gpu.check_gpus(lambda uuid: WELL)[2]
    assert copies.status is Status.FAIL and "memlock" in copies.fix
    monkeypatch.setattr(doctor_gpu, "pinned_copy_is_right", without_a_word)
    assert doctor_gpu.check_gpus(lambda uuid: WELL)[2].detail == "pinned memory cannot be used: MemoryError"
    monkeypatch.setattr(doctor_gpu, "pinned_copy_is_right", lambda device: False)
    assert doctor_gpu.check_gpus(lambda uuid: WELL)[2].status is Status.FAIL


def test_health_as_the_library_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setattr(nvml, "pynvml", fake)
    assert health_of(UUID) == GpuHealth("580.65", "13.1", True, 0, ("thermal slowdown (hardware)",), 88)
    assert f"nvmlDeviceGetHandleByUUID('GPU-{UUID}',)" in fake.calls
    assert fake.calls[-1] == "nvmlShutdown()"


def test_a_part_of_a_gpu_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a MIG instance torch tells the instance's UUID, without saying that it is one."""

    class Divided(FakeNvml):
        def __init__(self) -> None:
            super().__init__()
            self.nvmlDeviceGetHandleByUUID = self.handle_of

        def handle_of(self, uuid: str) -> str:
            if not uuid.startswith("MIG-"):
                raise self.NVMLError("Not Found")
            return uuid

    monkeypatch.setattr(nvml, "pynvml", Divided())
    assert isinstance(health_of(UUID), GpuHealth)


def test_what_is_not_supported_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported = FakeNvml.NVMLError("Not Supported")
    fake = FakeNvml(
        nvmlDeviceGetEccMode=unsupported, nvmlDeviceGetTotalEccErrors=unsupported,
        nvmlDeviceGetCurrentClocksEventReasons="absent", nvmlDeviceGetCurrentClocksThrottleReasons=0x4,
    )  # fmt: skip
    monkeypatch.setattr(nvml, "pynvml", fake)
    assert health_of(UUID) == GpuHealth("580.65", "13.1", None, None, ("power cap",), 88)


def test_the_library_may_be_absent_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "pynvml", None)
    assert "tokenwire[gpu]" in str(health_of(UUID))
    monkeypatch.setattr(nvml, "pynvml", FakeNvml(nvmlInit=FakeNvml.NVMLError("Driver Not Loaded")))
    assert health_of(UUID) == "NVML does not start: Driver Not Loaded"
    monkeypatch.setattr(nvml, "pynvml", FakeNvml(nvmlDeviceGetHandleByUUID=FakeNvml.NVMLError("Not Found")))
    assert health_of(UUID) == "NVML does not tell: Not Found"


def test_the_driver_is_read_from_proc(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12\n"
    (tmp_path / "version").write_text(text)
    assert doctor_gpu.nvidia_driver(tmp_path / "version") == "570.86.15"
    assert doctor_gpu.nvidia_driver(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), ["fp32", "fp16"]), ((8, 0), ["fp32", "fp16", "bf16"]), ((9, 0), ["fp32", "fp16", "bf16", "fp8"])],
)
def test_dtypes_by_compute_capability(capability: tuple[int, int], expected: list[str]) -> None:
    assert doctor_gpu.gpu_dtypes(capability) == expected
