"""Llama-shaped models through the CPU kernels, against their own forward pass with the same packed weights."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model_svc.model.attention import SdpaBackend
from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.merged_linear import merge_linears
from model_svc.model.native_decoder import native_decoder
from model_svc.model.native_linear import NativeLinear, pack_linears
from model_svc.model.paged import PagedStep, allocate, plan_step, positions_and_slots, query_starts_of
from model_svc.model.probe import kv_specs
from model_svc.model.quantized import quantize
from model_svc.native.library import why_unavailable
from tests.fakes.tiny_models import VOCAB_SIZE, write_model

CPU = torch.device("cpu")
BLOCK_SIZE = 4
SHAPED = ["llama", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen2_window", "qwen3", "qwen3_yarn", "smollm3"]
OTHERS = ["gemma2", "phi3", "granite", "stablelm", "mixtral", "gpt_neox"]

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))


def packed(folder: Path, family: str, dtype: str = "float32", quantization: str = "none") -> LoadedModel:
    model = load_model(write_model(folder, family), CPU, dtype)
    merge_linears(model)
    quantize(model, quantization, natively=True)
    pack_linears(model.module)
    return model


def step_of(model: LoadedModel, computed: list[int], new: list[int]) -> tuple[Tensor, PagedStep]:
    """Positions [T] and the plan of rows that continue after `computed` tokens, over a random cache."""
    kv = allocate(kv_specs(model), 40, BLOCK_SIZE, model.dtype, CPU)
    generator = torch.Generator().manual_seed(1)
    for layer in kv.layers:
        for cache in (layer.key, layer.value):
            cache.copy_(torch.randn(cache.shape, generator=generator))
    done, wanted = np.array(computed), np.array(new)
    table = np.random.default_rng(0).permutation(40).reshape(len(new), -1)
    positions, slots = positions_and_slots(done, wanted, table, BLOCK_SIZE)
    step = plan_step(
        kv, done, wanted, torch.from_numpy(slots), torch.from_numpy(table), torch.from_numpy(done + wanted),
        torch.from_numpy(query_starts_of(wanted)),
    )  # fmt: skip
    return torch.from_numpy(positions), step


@torch.inference_mode()
def both(model: LoadedModel, computed: list[int], new: list[int]) -> tuple[Tensor, Tensor]:
    """Logits of every token of a step: the decoder's, and those of transformers' forward pass."""
    decoder = native_decoder(model)
    assert decoder is not None
    token_ids = torch.randint(VOCAB_SIZE, (sum(new),), generator=torch.Generator().manual_seed(2))
    keep, found = torch.arange(sum(new)), []
    for each in (replace(model, decoder=decoder), model):
        positions, step = step_of(model, computed, new)
        found.append(each.logits(token_ids, positions, keep, step, SdpaBackend()).float())
        found.append(torch.cat([layer.key_slots[step.slots].flatten() for layer in step.kv.layers]).float())
    assert (found[1] - found[3]).abs().mean() < (0.02 if model.dtype == torch.bfloat16 else 1e-5)
    return found[0], found[2]


@pytest.mark.parametrize("family", SHAPED)
@pytest.mark.parametrize(
    ("computed", "new"), [([17, 9, 5, 0], [1, 1, 1, 1]), ([21, 3, 0, 6], [1, 1, 19, 7])], ids=["decodes", "mixed"]
)
def test_the_same_logits_as_transformers(tmp_path: Path, family: str, computed: list[int], new: list[int]) -> None:
    torch.testing.assert_close(*both(packed(tmp_path, family), computed, new), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_in_bfloat16_with_quantised_weights(tmp_path: Path, quantization: str) -> None:
    native, wanted = both(packed(tmp_path, "llama", "bfloat16", quantization), [21, 3, 0, 6], [1, 1, 19, 7])
    assert (native - wanted).abs().mean() < 0.02 * wanted.std()


@pytest.mark.parametrize("family", OTHERS)
def test_other_models_keep_their_own_forward_pass(tmp_path: Path, family: str) -> None:
    assert native_decoder(packed(tmp_path, family)) is None


def test_what_is_not_merged_keeps_its_own_forward_pass(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path, "llama"), CPU, "float32")
    pack_linears(model.module)
    assert native_decoder(model) is None


def test_a_packed_layer_shows_its_weight(tmp_path: Path) -> None:
    layer = torch.nn.Linear(37, 21).requires_grad_(False)
    native = NativeLinear(layer)
    rows = torch.randn(2, 3, 37)
    torch.testing.assert_close(native(rows), layer(rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(native.weight, layer.weight, rtol=0, atol=0)
    assert torch.equal(native.bias, layer.bias)


def test_a_head_tied_to_the_embeddings_gets_a_packed_copy(tmp_path: Path) -> None:
    model = packed(tmp_path, "llama_tied")
    assert isinstance(model.module.lm_head, NativeLinear)
    torch.testing.assert_close(model.module.lm_head.weight, model.module.model.embed_tokens.weight, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_a_sequences_logits_are_the_same_bits_alone_and_in_a_batch(tmp_path: Path, dtype: str) -> None:
    model = packed(tmp_path, "qwen3", dtype)
    model = replace(model, decoder=native_decoder(model))
    computed, new = [21, 3, 0, 6], [1, 1, 19, 7]
    token_ids = torch.randint(VOCAB_SIZE, (sum(new),), generator=torch.Generator().manual_seed(2))
    positions, step = step_of(model, computed, new)
    together = model.logits(token_ids, positions, torch.arange(sum(new)), step, SdpaBackend())
    for row, (start, stop) in enumerate(pairwise(step.query_starts.tolist())):
        span = slice(start, stop)
        alone = PagedStep(
            step.kv, step.slots[span], step.table[row : row + 1], step.lengths[row : row + 1],
            torch.tensor([0, stop - start]), int(stop - start == 1), step.contexts[row : row + 1],
            step.num_new[row : row + 1],
        )  # fmt: skip
        kept = torch.arange(stop - start)
        logits = model.logits(token_ids[span], positions[span], kept, alone, SdpaBackend())
        assert torch.equal(logits, together[span])
    # The same prompt in chunks of 5, its last token alone.
    span, block = slice(2, 21), step.table[2:3]
    parts = []
    for first in range(0, 19, 5):
        stop = min(first + 5, 19)
        chunk = PagedStep(
            step.kv, step.slots[span][first:stop], block, torch.tensor([stop]), torch.tensor([0, stop - first]), 0,
            (stop,), (stop - first,),
        )  # fmt: skip
        ids, at = token_ids[span][first:stop], positions[span][first:stop]
        parts.append(model.logits(ids, at, torch.arange(stop - first), chunk, SdpaBackend()))
    assert torch.equal(torch.cat(parts), together[span])
