"""Settings that are honoured or refused on the way to a runner."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from model_svc.runner import build_runner, kv_cache
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
    assert (info.device, info.dtype, info.attention) == ("cpu", "float32", "sdpa")
    assert info.max_context_tokens == 100
    assert info.num_blocks == 3 * 13, "never more than a full batch could use"
    assert list(info.phases_s) == ["import", "attention", "load", "probe", "kv", "warmup"]
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
