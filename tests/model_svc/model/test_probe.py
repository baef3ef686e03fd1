"""Which architectures are served, and which are refused with the reason; none is served wrongly."""

from pathlib import Path

import pytest
import torch

from model_svc.model.attention import SdpaBackend
from model_svc.model.loader import load_model
from model_svc.model.paged import LayerKVSpec
from model_svc.model.probe import kv_specs, probe
from tests.fakes.tiny_models import CONTEXT, LONGROPE, write_model
from tokenwire.errors import FailedPrecondition

SERVED = {
    "llama": LayerKVSpec(2, 8, 8),
    "llama_tied": LayerKVSpec(2, 8, 8),
    "llama3_rope": LayerKVSpec(2, 8, 8),
    "qwen2": LayerKVSpec(2, 8, 8),
    "qwen2_window": LayerKVSpec(2, 8, 8),
    "qwen3": LayerKVSpec(2, 16, 16),
    "qwen3_yarn": LayerKVSpec(2, 16, 16),
    "qwen3_moe": LayerKVSpec(2, 16, 16),
    "gemma2": LayerKVSpec(2, 16, 16),
    "gemma3": LayerKVSpec(2, 16, 16),
    "gemma3_multimodal": LayerKVSpec(2, 16, 16),
    "mistral": LayerKVSpec(2, 8, 8),
    "phi3": LayerKVSpec(2, 8, 8),
    "olmo2": LayerKVSpec(2, 8, 8),
    "granite": LayerKVSpec(2, 8, 8),
    "granite_moe": LayerKVSpec(2, 8, 8),
    "gpt_neox": LayerKVSpec(4, 8, 8),
    "gpt_neox_sequential": LayerKVSpec(4, 8, 8),
    "stablelm": LayerKVSpec(2, 8, 8),
    "stablelm_parallel": LayerKVSpec(2, 8, 8),
    "nemotron": LayerKVSpec(2, 8, 8),
    "cohere": LayerKVSpec(2, 8, 8),
    "cohere2": LayerKVSpec(2, 8, 8),
    "smollm3": LayerKVSpec(2, 8, 8),
    "mixtral": LayerKVSpec(2, 8, 8),
    "olmoe": LayerKVSpec(2, 8, 8),
    "gpt_oss": LayerKVSpec(2, 16, 16),
    "deepseek_v3": LayerKVSpec(4, 16, 12),
}
NEVER_CALLED = "calls to the registered attention|a trial run failed"
OWN_ATTENTION = "takes no other implementation"
REFUSED = {
    "bloom": NEVER_CALLED,
    "falcon": OWN_ATTENTION,
    "gptj": OWN_ATTENTION,
    "mpt": NEVER_CALLED,
    "mamba": NEVER_CALLED,
    "jamba": NEVER_CALLED,
    "recurrent_gemma": NEVER_CALLED,
    "falcon_h1": "tokens packed before it",
    "phi3_longrope": "neighbour in the batch",
    "llama4": "mask is not causal",
}
DTYPES = ("float32", "bfloat16")


def run_probe(folder: Path, dtype: str, max_context_tokens: int = CONTEXT) -> tuple[LayerKVSpec, ...]:
    model = load_model(folder, torch.device("cpu"), dtype)
    specs = kv_specs(model)
    probe(model, SdpaBackend(), specs, block_size=4, max_context_tokens=max_context_tokens)
    return specs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SERVED)
def test_served(tmp_path: Path, name: str, dtype: str) -> None:
    assert run_probe(write_model(tmp_path, name), dtype) == (SERVED[name],) * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(FailedPrecondition, match=REFUSED[name]) as refusal:
        run_probe(write_model(tmp_path, name), dtype)
    assert refusal.value.reason == "MODEL_UNSUPPORTED"


@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_rope_is_served_only_where_it_never_rescales(tmp_path: Path, dtype: str) -> None:
    folder = write_model(tmp_path, "llama_dynamic_rope")
    run_probe(folder, dtype)
    with pytest.raises(FailedPrecondition, match="neighbour in the batch"):
        run_probe(folder, dtype, 4 * CONTEXT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_longrope_is_served_up_to_its_threshold_and_not_one_past_it(tmp_path: Path, dtype: str) -> None:
    """Past it, one long sequence would change the factors of all that are computed beside it."""
    folder = write_model(tmp_path, "phi3_longrope")
    run_probe(folder, dtype, LONGROPE["original_max_position_embeddings"])
    with pytest.raises(FailedPrecondition, match="neighbour in the batch"):
        run_probe(folder, dtype, LONGROPE["original_max_position_embeddings"] + 1)


def test_a_window_that_attention_is_not_told_of_is_refused(tmp_path: Path) -> None:
    """The window is far longer than the probe's sequences: only the mask gives it away."""
    model = load_model(write_model(tmp_path, "qwen2_window"), torch.device("cpu"), "float32")
    model.module.config.sliding_window = 100
    for layer in model.module.model.layers:
        layer.self_attn.sliding_window = None
    with pytest.raises(FailedPrecondition, match="mask is not causal"):
        kv_specs(model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_that_differs_from_eager_is_refused(tmp_path: Path, dtype: str) -> None:
    class WrongScale(SdpaBackend):
        def attend(self, *args):  # type: ignore[no-untyped-def]
            return super().attend(*args[:-1], args[-1]._replace(scale=1.0))

    model = load_model(write_model(tmp_path, "llama"), torch.device("cpu"), dtype)
    with pytest.raises(FailedPrecondition, match="differs from transformers' eager attention"):
        probe(model, WrongScale(), kv_specs(model), block_size=4, max_context_tokens=CONTEXT)


def test_a_pass_that_raises_is_refused_with_what_it_raised(tmp_path: Path) -> None:
    class Broken(SdpaBackend):
        def attend(self, *args):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("no such thing")

    model = load_model(write_model(tmp_path, "llama"), torch.device("cpu"), "float32")
    with pytest.raises(FailedPrecondition, match="a trial run failed: ZeroDivisionError: no such thing"):
        probe(model, Broken(), kv_specs(model), block_size=4, max_context_tokens=CONTEXT)


def test_a_context_too_short_to_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="too short"):
        run_probe(write_model(tmp_path, "llama"), "float32", 3)
