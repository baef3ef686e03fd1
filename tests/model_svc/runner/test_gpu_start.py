"""What the start does with a GPU before anything is loaded, on a CPU with the GPU's part made up."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from model_svc import doctor_gpu
from model_svc.runner import encoder_startup, gpu_start, startup
from model_svc.runner.gpu_start import prepare_gpu
from model_svc.settings import EngineSettings
from tokenwire.checks import Check, fail, ok, warn
from tokenwire.errors import FailedPrecondition

SECOND = torch.device("cuda", 1)
WELL = ok("gpu 1", "NVIDIA H200, compute capability 9.0; products right")
UNKNOWN = warn("gpu 1 health", "not known: no library", "nothing to do to serve")
COPIES = ok("gpu 1 copies", "from pinned memory 54.3 GB/s")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to the device, in order. Every finding is well."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(f"set {device}"))
    found(monkeypatch, calls, WELL, UNKNOWN, COPIES)
    return calls


def found(monkeypatch: pytest.MonkeyPatch, calls: list[str], *checks: Check) -> None:
    """Have the diagnostics find this."""

    def check_gpu(index: int, driver: str) -> list[Check]:
        calls.append(f"checked {index}")
        return list(checks)

    monkeypatch.setattr(doctor_gpu, "check_gpu", check_gpu)


@pytest.fixture
def with_tf32() -> Iterator[None]:
    """As where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is 1: float32 products in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def test_the_gpu_is_the_threads_own_before_anything_runs_on_it(done: list[str]) -> None:
    prepare_gpu(SECOND)
    assert done == ["set cuda:1", "checked 1"]


@pytest.mark.usefixtures("with_tf32")
def test_float32_is_computed_in_float32(done: list[str]) -> None:
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    prepare_gpu(SECOND)
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("with_tf32")
def test_the_diagnostics_compute_float32_in_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_gpu(index: int, driver: str, health: object) -> list[Check]:
        assert not torch.backends.cuda.matmul.allow_tf32
        return [WELL]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor_gpu, "check_gpu", check_gpu)
    assert doctor_gpu.check_gpus() == [WELL]


def test_the_environment_does_not_outrank_it() -> None:
    program = (
        "import torch\nfrom model_svc.runner.gpu_check import compute_float32_in_full\n"
        "told = [torch.backends.cuda.matmul.allow_tf32]\ncompute_float32_in_full()\n"
        "print(told, torch.backends.cuda.matmul.allow_tf32, torch.backends.cuda.matmul.fp32_precision)"
    )
    environ = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    said = subprocess.run((sys.executable, "-c", program), env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[True] False ieee"


def test_what_is_found_is_logged_once(done: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, gpu_start.__name__):
        prepare_gpu(SECOND)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "gpu 1: NVIDIA H200, compute capability 9.0; products right"),
        ("WARNING", "gpu 1 health: not known: no library"),
        ("INFO", "gpu 1 copies: from pinned memory 54.3 GB/s"),
    ]
    assert caplog.records[1].tokenwire_fields == {"fix": "nothing to do to serve"}  # type: ignore[attr-defined]


def test_what_blocks_serving_refuses_the_start(
    done: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found(monkeypatch, done, fail("gpu 1", "a matrix product in bf16 came out wrong", "check its health"), UNKNOWN)
    said = "cuda:1 cannot be used: a matrix product in bf16 came out wrong; check its health"
    with pytest.raises(FailedPrecondition, match=said) as caught:
        prepare_gpu(SECOND)
    assert caught.value.reason == "DEVICE_UNUSABLE"
    assert "gpu 1 health: not known: no library" in caplog.messages, "what may be the cause is told"


def test_a_gpu_that_cannot_be_had_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(device: torch.device) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(FailedPrecondition, match="cuda:1 cannot be used: CUDA error: all .* unavailable; see whether"):
        prepare_gpu(SECOND)


class Prepared(Exception):
    """The start has come so far."""


@pytest.mark.parametrize("start", [startup.start_runner, encoder_startup.start_encoder])
def test_every_start_prepares_its_gpu_first(start: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(device: torch.device) -> None:
        assert device == SECOND
        raise Prepared

    for module in (startup, encoder_startup):
        monkeypatch.setattr(module, "resolve_device", lambda name: SECOND)
        monkeypatch.setattr(module, "prepare_gpu", prepare)
    with pytest.raises(Prepared):
        start(EngineSettings(model="nowhere", device="cuda:1", threads=torch.get_num_threads()), {})
