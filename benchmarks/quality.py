"""What quantised weights lose: divergence from float32 over English prose, by the engine's own forward pass.

KL divergence is that of the float32 distribution from the other, the mean over all tokens, in nats; also how often the
likeliest next token is the same. Knows models, not speed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.machine import ROOT
from model_svc.model.attention_choice import choose_backend
from model_svc.model.loader import LoadedModel
from model_svc.model.native_linear import NativeLinear
from model_svc.model.paged import allocate, plan_step, positions_and_slots, query_starts_of
from model_svc.model.probe import kv_specs
from model_svc.native.packing import INT4_GROUP, int4_groups

PROSE = ("0001-engine-in-its-own-process.md", "0010-own-kernels-for-cpus.md", "0012-block-tables-stay-on-the-device.md")
"""Of docs/decisions, which are not changed once written."""
NUM_TOKENS = 1024
BLOCK_SIZE = 16
SHIFTED = "int4, weights that were never in 4 bits"


@torch.inference_mode()
def quality_of(folder: Path, models: dict[str, LoadedModel]) -> dict[str, Any]:
    """Each model's loss against the weights in `folder` in float32, its size, and that of int4 with shifted groups."""
    token_ids = prose(folder)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    wanted = exact(input_ids=token_ids[None]).logits[0]
    kinds = {
        name: {**loss(wanted, logits_of(model, token_ids)), "mb": megabytes(model)} for name, model in models.items()
    }
    shift_groups(exact)
    shifted = exact(input_ids=token_ids[None]).logits[0]
    return {"tokens": len(token_ids), "kinds": kinds | {SHIFTED: {**loss(wanted, shifted), "mb": None}}}


def prose(folder: Path) -> Tensor:
    """[NUM_TOKENS] int64: the project's own decisions, as the model's tokenizer has them."""
    text = "\n\n".join((ROOT / "docs/decisions" / name).read_text() for name in PROSE)
    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids[:NUM_TOKENS]
    return torch.tensor(ids, dtype=torch.int64)


def logits_of(model: LoadedModel, token_ids: Tensor) -> Tensor:
    """[T, V] float32, of every position, through the paged cache as the engine computes it."""
    count, device = len(token_ids), model.device
    num_blocks = -(-count // BLOCK_SIZE)
    kv = allocate(kv_specs(model), num_blocks, BLOCK_SIZE, model.dtype, device)
    computed, new = np.zeros(1, dtype=np.int64), np.array([count], dtype=np.int64)
    table = np.arange(num_blocks, dtype=np.int64)[None]
    positions, slots = (torch.from_numpy(each) for each in positions_and_slots(computed, new, table, BLOCK_SIZE))
    plan = plan_step(
        kv, computed, new, slots, torch.from_numpy(table), torch.from_numpy(new), torch.from_numpy(query_starts_of(new))
    )
    backend = choose_backend("auto", device, BLOCK_SIZE, without_kernels=None)
    return model.logits(token_ids, positions, torch.arange(count), plan, backend).float()


def loss(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """Mean KL divergence in nats, and the share of positions with the same likeliest token."""
    exact, other = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    kl = (exact.exp() * (exact - other)).sum(-1).mean()
    return {"kl": float(kl), "top1": float((wanted.argmax(-1) == found.argmax(-1)).double().mean())}


def megabytes(model: LoadedModel) -> float:
    """Weights as they are held, a packed copy of the tied output head not counted."""
    head = model.module.get_output_embeddings()
    packed = [layer for layer in model.module.modules() if isinstance(layer, NativeLinear)]
    others = {each.data_ptr(): each for each in model.module.parameters()}  # a tied one comes once
    num_bytes = sum(layer.packed.num_bytes for layer in packed if layer is not head)
    return (num_bytes + sum(each.nbytes for each in others.values())) / 1e6


def shift_groups(module: Any) -> None:
    """Round each linear layer but the head to int4, in groups that straddle those of the weights' file."""
    head = module.get_output_embeddings()
    for layer in module.modules():
        if type(layer) is torch.nn.Linear and layer is not head:
            rolled = layer.weight.roll(INT4_GROUP // 2, dims=1)
            layer.weight.copy_(dequantized(rolled).roll(-(INT4_GROUP // 2), dims=1))


def dequantized(weight: Tensor) -> Tensor:
    """[N, K]: the weight as int4 holds it."""
    quantized, scale, offset = int4_groups(weight)
    groups = quantized.view(len(weight), -1, INT4_GROUP).float() - 8
    return (offset[..., None].float() + scale[..., None].float() * groups).view_as(weight)
