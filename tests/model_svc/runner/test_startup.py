"""Settings that are honoured or refused on the way to a runner."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from model_svc.model.native_decoder import NativeDecoder
from model_svc.native.library import why_unavailable
from model_svc.runner import build_runner, fast_layers, kv_cache
from model_svc.runner.limits import StepLimits, step_limits
from model_svc.runner.startup import context_limit, start_runner
from model_svc.settings import EngineSettings
from tests.fakes.tiny_models import CONTEXT, VOCAB_SIZE
from tokenwire.errors import FailedPrecondition


@pytest.fixture
def settings(tiny_folder: Callable[[str], str]) -> EngineSettings:
    return EngineSettings(
        model=tiny_folder("llama"), device="cpu", dtype="float32", threads=1, block_size=8, max_batch_size=3
    )


def test_info_tells_what_was_built(settings: EngineSettings) -> None:
    info = build_runner(replace(settings, served_name="tiny", max_context_tokens=100)).info
    assert (info.model, info.vocab_size, info.block_size) == ("tiny", VOCAB_SIZE, 8)
    attention = "sdpa" if why_unavailable() else "native"
    assert (info.device, info.dtype, info.attention) == ("cpu", "float32", attention)
    assert info.max_context_tokens == 100
    assert info.num_blocks == 3 * 13, "never more than a full batch could use"
    assert list(info.phases_s) == ["import", "attention", "load", "vocabulary", "probe", "kv", "warmup"]
    assert all(seconds >= 0 for seconds in info.phases_s.values())


def test_the_name_and_context_default_to_the_models(settings: EngineSettings) -> None:
    info = build_runner(settings).info
    assert (info.model, info.max_context_tokens) == ("llama", CONTEXT)


def test_kv_memory_sets_the_number_of_blocks(settings: EngineSettings) -> None:
    block_bytes = 2 * 8 * 2 * (8 + 8) * 4  # layers, positions, heads, key and value, fp32
    assert build_runner(replace(settings, kv_memory=20 * block_bytes + 1)).info.num_blocks == 20


def test_kv_memory_below_one_context_is_refused(settings: EngineSettings) -> None:
    with pytest.raises(
        FailedPrecondition, match=rf"kv_memory: .* one full context has {CONTEXT}.*--max-context-tokens"
    ):
        build_runner(replace(settings, kv_memory=1024))


def test_a_context_nobody_asked_for_is_what_the_memory_holds(
    settings: EngineSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_cache, "LEAST_CONTEXT_TOKENS", 64)
    block_bytes = 2 * 8 * 2 * (8 + 8) * 4
    info = build_runner(replace(settings, kv_memory=9 * block_bytes)).info
    assert (info.num_blocks, info.max_context_tokens) == (9, 72)
    assert f"one full context has {CONTEXT}" in caplog.text and "requests may have 72" in caplog.text
    with pytest.raises(FailedPrecondition, match="hold 72 positions"):
        build_runner(replace(settings, kv_memory=9 * block_bytes, max_context_tokens=CONTEXT))
    with pytest.raises(FailedPrecondition, match="hold 56 positions"):
        build_runner(replace(settings, kv_memory=7 * block_bytes))


def test_limits_of_a_step_that_are_left_open() -> None:
    assert step_limits(0, 0, "cpu") == StepLimits(64, 512)
    assert step_limits(0, 0, "cuda") == StepLimits(256, 8192)
    assert step_limits(1000, 0, "cpu") == StepLimits(1000, 1000)
    assert step_limits(0, 16, "cpu") == StepLimits(16, 16)
    assert step_limits(8, 4, "cpu") == StepLimits(8, 4)


def test_kv_memory_beyond_the_machine_is_refused(settings: EngineSettings) -> None:
    with pytest.raises(FailedPrecondition, match="kv_memory: .* more than the"):
        build_runner(replace(settings, kv_memory=2**50))


def test_bf16_runs(settings: EngineSettings) -> None:
    assert build_runner(replace(settings, dtype="bfloat16")).info.dtype == "bfloat16"


def test_context_limit() -> None:
    assert context_limit(0, 128) == 128
    assert context_limit(64, 128) == 64
    assert context_limit(64, 0) == 64
    with pytest.raises(FailedPrecondition, match="max_context_tokens: 129 is more than the model's 128"):
        context_limit(129, 128)
    with pytest.raises(FailedPrecondition, match="set --max-context-tokens"):
        context_limit(0, 0)
    with pytest.raises(FailedPrecondition, match="max_context_tokens: 1 is not allowed"):
        context_limit(1, 128)


@pytest.mark.parametrize("given", [{"merge_linears": "on"}, {"quantization": "int8"}])
def test_ranks_are_neither_merged_nor_quantised(settings: EngineSettings, given: dict[str, str]) -> None:
    with pytest.raises(FailedPrecondition, match="tensor_parallel: layers of several ranks"):
        start_runner(replace(settings, tensor_parallel=2, **given), {})  # type: ignore[arg-type]


@pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))
def test_cpu_kernels_in_use_and_not(settings: EngineSettings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert build_runner(replace(settings, cpu_kernels="on")).info.attention == "native"
    assert "forward pass: CPU kernels" in caplog.messages
    assert build_runner(replace(settings, cpu_kernels="off")).info.attention == "sdpa"
    assert "CPU kernels: not in use: cpu_kernels is off" in caplog.messages
    assert build_runner(replace(settings, attention="sdpa")).info.attention == "sdpa"
    assert "forward pass: transformers, with packed linear layers" in caplog.messages


def test_cpu_kernels_asked_for_in_vain(settings: EngineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "why_unavailable", lambda: "this CPU lacks AVX512-BF16")
    with pytest.raises(FailedPrecondition, match="cpu_kernels: they cannot be used: this CPU lacks AVX512-BF16"):
        build_runner(replace(settings, cpu_kernels="on"))
    with pytest.raises(FailedPrecondition, match="attention: 'native' cannot be used: this CPU lacks AVX512-BF16"):
        build_runner(replace(settings, attention="native"))
    assert build_runner(settings).info.attention == "sdpa"
    with pytest.raises(FailedPrecondition, match="not in float16"):
        build_runner(replace(settings, cpu_kernels="on", dtype="float16"))


@pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))
def test_kernels_that_give_other_numbers_are_not_used(
    settings: EngineSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rightly = NativeDecoder.logits
    monkeypatch.setattr(NativeDecoder, "logits", lambda *arguments: rightly(*arguments) * 1.1)
    runner = build_runner(settings)
    assert runner._model.decoder is None
    assert "transformers, because the CPU kernels give other numbers" in caplog.text
