from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from model_svc.model import quantized
from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.merged_linear import merge_linears
from model_svc.model.quantized import (
    Int4Linear,
    Int8Linear,
    check_quantization,
    quantizable,
    quantize,
    quantize_by_torchao,
)
from model_svc.runner import build_runner
from model_svc.settings import EngineSettings
from tests.fakes.step_loop import StepLoop, outputs
from tests.fakes.tiny_models import write_model
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import NEUTRAL

CPU = torch.device("cpu")
MODES = [("int8", "float32"), ("int8", "bfloat16"), ("int4", "bfloat16")]
LARGEST_ERROR = {"int8": 0.02, "int4": 0.15}
"""Of a layer's output, relative to its length."""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: write_model(tmp_path / name, name)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 8, 9, 40])
@pytest.mark.parametrize(("mode", "dtype"), [*MODES, ("int8", "float16")])
def test_a_layer_gives_about_what_it_gave(mode: str, dtype: str, num_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias, dtype=getattr(torch, dtype)).requires_grad_(False)
    x = torch.randn(1, num_rows, 64, dtype=layer.weight.dtype)
    found = {"int8": Int8Linear, "int4": Int4Linear}[mode](layer)(x)
    wanted = layer.float()(x.float())
    assert found.shape == wanted.shape and found.dtype == x.dtype
    assert (found.float() - wanted).norm() < LARGEST_ERROR[mode] * wanted.norm()


def test_int4_keeps_weights_that_are_on_a_grid_of_16_values() -> None:
    torch.manual_seed(0)
    weight = (torch.randint(16, (16, 64)) - 8) / 16
    weight[:, ::32], weight[:, 1::32] = -8 / 16, 7 / 16  # each group spans the grid
    layer = nn.Linear(64, 16, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.copy_(weight)
    identity = torch.eye(64, dtype=torch.bfloat16)
    assert torch.equal(Int4Linear(layer)(identity).T.float(), weight)


@pytest.mark.parametrize("merge", ["on", "off"])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize(("mode", "dtype"), MODES)
def test_a_quantised_model_runs_and_equal_seeds_give_equal_tokens(
    folder: Callable[[str], Path], family: str, mode: str, dtype: str, merge: str
) -> None:
    """That the probe accepts it says that paged and eager attention agree over the same quantised weights."""
    settings = EngineSettings(
        model=str(folder(family)), device="cpu", dtype=dtype, threads=1, block_size=4, max_batch_size=8,
        kv_memory=2**22, quantization=mode, merge_linears=merge,
    )  # fmt: skip
    runner = build_runner(settings)
    made = []
    for _ in range(2):
        loop = StepLoop(runner)
        sampled = replace(NEUTRAL, seed=5, temperature=1.0)
        sequences = [loop.add([3, 1, 4, length], 8, sampled) for length in range(4)]
        loop.run()
        assert not loop.errors
        made.append([outputs(sequence) for sequence in sequences])
    assert made[0] == made[1]


def logits(model: LoadedModel) -> torch.Tensor:
    ids = torch.arange(2, 12)[None]
    model.module.set_attn_implementation("eager")
    found: torch.Tensor = model.module(input_ids=ids, use_cache=False).logits.float()
    return found


@pytest.mark.parametrize(("mode", "dtype"), MODES)
def test_logits_are_close_to_float32(folder: Callable[[str], Path], mode: str, dtype: str) -> None:
    at = folder("llama")
    model = load_model(at, CPU, dtype)
    merge_linears(model)
    assert quantize(model, mode) == (9 if mode == "int8" else 6)  # qkv, o, gate-up, down and the head
    found, wanted = logits(model), logits(load_model(at, CPU, "float32"))
    assert (found - wanted).norm() < 3 * LARGEST_ERROR[mode] * wanted.norm()


def test_a_head_tied_to_the_embeddings_is_left_alone(folder: Callable[[str], Path]) -> None:
    model = load_model(folder("llama_tied"), CPU, "float32")
    quantize(model, "int8")
    assert type(model.module.lm_head) is nn.Linear
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert type(model.module.model.layers[0].self_attn.q_proj) is Int8Linear


def test_refused_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    check_quantization("int8", CPU)
    with pytest.raises(FailedPrecondition, match="quantization: fp8 cannot be used: a CPU has no") as error:
        check_quantization("fp8", CPU)
    assert error.value.reason == "QUANTIZATION_UNSUPPORTED"
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    check_quantization("none", gpu)
    with pytest.raises(FailedPrecondition, match=r"torchao: pip install 'tokenwire\[quantization\]'"):
        check_quantization("int8", gpu)
    monkeypatch.setattr(quantized, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(FailedPrecondition, match=r"8\.9 or later, and cuda:0 has 8\.6"):
        check_quantization("fp8", gpu)
    check_quantization("int4", gpu)


def test_refused_by_the_model(folder: Callable[[str], Path]) -> None:
    with pytest.raises(FailedPrecondition, match="computes in bfloat16.*served in torch.float32.*--dtype bfloat16"):
        quantize(load_model(folder("llama"), CPU, "float32"), "int4")
    with pytest.raises(FailedPrecondition, match=r"only [\d,]+ of the [\d,]+ weights .*experts"):
        quantize(load_model(folder("mixtral"), CPU, "float32"), "int8")


def test_what_torchao_makes_of_it_on_a_cpu(folder: Callable[[str], Path]) -> None:
    """The way a GPU takes, as far as a CPU can follow."""
    pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    at = folder("llama")
    model = load_model(at, CPU, "float32")
    merge_linears(model)
    layers = quantizable(model.module, "int8")
    quantize_by_torchao(model.module, "int8", set(layers))
    assert all(type(layer.weight).__name__ == "Int8Tensor" for layer in layers.values())
    wanted = logits(load_model(at, CPU, "float32"))
    assert (logits(model) - wanted).norm() < 0.06 * wanted.norm()
