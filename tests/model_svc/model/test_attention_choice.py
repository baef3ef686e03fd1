"""Which backend is taken, what is refused, and what is said about it."""

import logging
import sys
from typing import Any

import pytest
import torch

from model_svc.model import attention_choice, flash_attention
from model_svc.model.attention import SdpaBackend
from model_svc.model.attention_choice import choose_backend, working_backend
from model_svc.model.attention_trial import failure_of
from tokenwire.errors import FailedPrecondition

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
INTERPRETED = {"TRITON_INTERPRET": "1"}


class FakeTriton(SdpaBackend):
    name = "triton"


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def trial(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    """Let the try-out of any backend end like this."""
    monkeypatch.setattr(attention_choice, "working_backend", lambda *_: result)


@pytest.mark.parametrize(("name", "reason"), [("auto", "the backend for CPUs"), ("sdpa", "as asked for")])
def test_sdpa_on_a_cpu_without_kernels(name: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(choose_backend(name, CPU, 16, {}, without_kernels="not built"), SdpaBackend)
    assert caplog.messages == [f"attention: sdpa, {reason}"]


@pytest.mark.parametrize(("name", "reason"), [("auto", "the backend for CPUs"), ("native", "as asked for")])
def test_kernels_on_a_cpu(name: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_backend(name, CPU, 16, {}).name == "native"
    assert caplog.messages == [f"attention: native, {reason}"]
    assert choose_backend("sdpa", CPU, 16, {}).name == "sdpa"


def test_kernels_that_are_not_there_are_refused_with_the_reason() -> None:
    with pytest.raises(FailedPrecondition, match="attention: 'native' cannot be used: not built"):
        choose_backend("native", CPU, 16, {}, without_kernels="not built")


@pytest.mark.parametrize(("name", "reason"), [("auto", "the backend for GPUs"), ("triton", "as asked for")])
def test_triton_on_a_gpu(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial(monkeypatch, FakeTriton())
    assert choose_backend(name, GPU, 16, {}).name == "triton"
    assert caplog.messages == [f"attention: triton, {reason}"]


def test_what_does_not_work_on_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    trial(monkeypatch, "a trial call failed: RuntimeError: no kernel image")
    assert choose_backend("auto", GPU, 16, {}).name == "sdpa"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "triton, which cannot be used: a trial call failed: RuntimeError: no kernel image" in record.message
    for name in ("triton", "flash"):
        with pytest.raises(FailedPrecondition, match=f"attention: '{name}' cannot be used: a trial call failed"):
            choose_backend(name, GPU, 16, {})


def test_an_interpreter_is_not_for_a_gpu() -> None:
    with pytest.raises(FailedPrecondition, match="unset it"):
        choose_backend("triton", GPU, 16, INTERPRETED)
    assert choose_backend("auto", GPU, 16, INTERPRETED).name == "sdpa"


@pytest.mark.parametrize("name", ["triton", "flash"])
def test_gpu_backends_are_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"'{name}' cannot be used: it needs a GPU") as refusal:
        choose_backend(name, CPU, 16, {})
    assert ("TRITON_INTERPRET=1" in str(refusal.value)) == (name == "triton")


def test_flash_is_refused_on_a_cpu_even_beside_the_interpreter() -> None:
    with pytest.raises(FailedPrecondition, match="it needs a GPU"):
        choose_backend("flash", CPU, 16, INTERPRETED)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="'eager' is not allowed: auto, flash, triton, native, sdpa"):
        choose_backend("eager", CPU, 16, {})


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("triton_attention", "triton_kernels"):
        monkeypatch.delitem(sys.modules, f"model_svc.model.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    found = working_backend("triton", CPU, 16)
    assert isinstance(found, str) and "ModuleNotFoundError" in found


def test_flash_attention_3_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(*, block_table: Any, enable_gqa: bool, seqused_k: Any) -> None: ...

    monkeypatch.setattr(flash_attention, "varlen_attn", varlen_attn)
    found = working_backend("flash", CPU, 16)
    assert isinstance(found, str) and "flash_attn_interface" in found


def test_flash_of_a_torch_that_does_not_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11 has it."""

    def varlen_attn(query: Any, *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)) -> None: ...

    monkeypatch.setattr(flash_attention, "varlen_attn", varlen_attn)
    found = working_backend("flash", CPU, 16)
    assert isinstance(found, str) and f"torch {torch.__version__} takes no block_table and no enable_gqa" in found


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
def test_the_reference_passes_its_own_trial(block_size: int) -> None:
    assert failure_of(SdpaBackend(), CPU, block_size) is None


def test_a_trial_finds_wrong_numbers_and_errors() -> None:
    class WrongScale(SdpaBackend):
        def attend(self, query: Any, *rest: Any) -> Any:
            return super().attend(query * 1.1, *rest)

    class NotANumber(SdpaBackend):
        def attend(self, *arguments: Any) -> Any:
            return super().attend(*arguments) * torch.nan

    class Broken(SdpaBackend):
        def attend(self, *_: Any) -> Any:
            raise ValueError("no such kernel\nand a page of detail")

    assert "differs from the reference by" in str(failure_of(WrongScale(), CPU, 16))
    assert "differs from the reference by nan" in str(failure_of(NotANumber(), CPU, 16))
    assert failure_of(Broken(), CPU, 16) == "a trial call failed: ValueError: no such kernel"
