"""The metrics of GPUs, from a stand-in for NVIDIA's management library."""

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from model_svc import nvml
from model_svc.gpu_metrics import GpuMetrics
from tests.fakes.nvml import FakeNvml


def registry_of(monkeypatch: pytest.MonkeyPatch, fake: Any, *uuids: str) -> CollectorRegistry:
    monkeypatch.setattr(nvml, "pynvml", fake)
    registry = CollectorRegistry(auto_describe=True)
    GpuMetrics(registry).watch(uuids)
    return registry


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """By name without its prefix, and labels."""
    found = [sample for family in registry.collect() for sample in family.samples]
    return {(each.name.removeprefix("tokenwire_model_gpu_"), *each.labels.values()): each.value for each in found}


def test_every_gpu_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(nvmlDeviceGetTotalEccErrors=3)
    found = samples(registry_of(monkeypatch, fake, "aaaa", "GPU-bbbb"))
    for gpu in "01":
        assert found["utilization_ratio", gpu] == 0.97
        assert (found["memory_used_bytes", gpu], found["memory_total_bytes", gpu]) == (30 * 2**30, 80 * 2**30)
        assert (found["power_watts", gpu], found["power_limit_watts", gpu]) == (512.0, 700.0)
        assert found["temperature_celsius", gpu] == 88
        assert found["sm_clock_hertz", gpu] == found["memory_clock_hertz", gpu] == 1.98e9
        assert found["slowdown_state", gpu, "thermal slowdown (hardware)"] == 1
        assert found["slowdown_state", gpu, "power cap"] == 0
        assert found["corrected_errors_total", gpu] == found["uncorrected_errors_total", gpu] == 3
    assert {"nvmlDeviceGetHandleByUUID('GPU-aaaa',)", "nvmlDeviceGetHandleByUUID('GPU-bbbb',)"} <= set(fake.calls)
    assert fake.calls.count("nvmlInit()") == fake.calls.count("nvmlShutdown()") == 2
    assert "nvmlDeviceGetTotalEccErrors('handle', 0, 0)" in fake.calls
    assert "nvmlDeviceGetTotalEccErrors('handle', 1, 0)" in fake.calls


def test_what_a_gpu_does_not_tell_has_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported = FakeNvml.NVMLError("Not Supported")
    names = ("EccErrors", "PowerUsage", "MemoryInfo", "CurrentClocksEventReasons")
    changed = {f"nvmlDeviceGet{'Total' if name == 'EccErrors' else ''}{name}": unsupported for name in names}
    found = samples(registry_of(monkeypatch, FakeNvml(**changed), "aaaa"))
    told = {"utilization_ratio", "power_limit_watts", "temperature_celsius", "sm_clock_hertz", "memory_clock_hertz"}
    assert {key[0] for key in found} == told


@pytest.mark.parametrize("broken", [None, FakeNvml(nvmlInit=FakeNvml.NVMLError("Driver Not Loaded"))])
def test_without_the_library_or_driver_there_is_nothing_and_one_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: Any
) -> None:
    caplog.set_level(logging.WARNING, "model_svc.gpu_metrics")
    registry = registry_of(monkeypatch, broken, "aaaa")
    assert samples(registry) == samples(registry) == {}
    assert len(caplog.records) == 1


def test_without_gpus_the_library_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    assert samples(registry_of(monkeypatch, fake)) == {} and fake.calls == []
