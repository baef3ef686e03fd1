"""The decoder of Llama-shaped models as one call of the project's CPU kernels, in place of the model's forward pass.

On a CPU a small model spends as long between its matrix products as in them: `transformers` makes some fifty calls of
torch per layer. The model's modules stay what they are: their packed weights, norms and rotary embedding are used, and
the load probe compares the result with their own forward pass.
Knows where `transformers` keeps the parts of such a layer; does not know sequences.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model_svc.model.loader import LoadedModel
from model_svc.model.merged_linear import MergedLinear, MergedPart
from model_svc.model.native_linear import NativeLinear
from model_svc.model.paged import PagedKV, PagedStep
from model_svc.model.step_adapters import step_rows
from model_svc.native import kernels
from model_svc.native.adapters import AdapterTable
from model_svc.native.decoder import Caches, LayerParts, Layers, Norm, StepTensors
from model_svc.native.packing import PackedWeight

SHAPED_LIKE_LLAMA = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"}
)
GELU_BY_ACTIVATION = {"SiLUActivation": False, "SiLU": False, "GELUTanh": True}


class NativeDecoder:
    """Computes the logits of one model; see the module. Not for several threads."""

    def __init__(self, model: LoadedModel, parts: list[LayerParts], final_norm: Norm, *, gelu: bool) -> None:
        decoder = model.module.model
        self._embedding: Tensor = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self._parts, self._final_norm, self._gelu = parts, final_norm, gelu
        self._head: PackedWeight = model.module.lm_head.packed
        self._kv: PagedKV | None = None
        self._layers: Layers | None = None
        self._tables: dict[int, AdapterTable] = {}

    def adapt(self, tables: dict[int, AdapterTable]) -> None:
        """From now on steps may have adapters. `tables`: of each layer's, by the id of its packed weight."""
        self._tables, self._layers = tables, None

    def logits(self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: PagedStep) -> Tensor:
        """As `LoadedModel.logits`: [S, vocab_size]."""
        return self.logits_and_hidden(token_ids, positions, keep, step)[0]

    def logits_and_hidden(
        self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: PagedStep
    ) -> tuple[Tensor, Tensor]:
        """As `LoadedModel.logits_and_hidden`: [S, vocab_size] and [T, hidden_size]."""
        hidden = self._embedding.index_select(0, token_ids)
        cos, sin = self._rotary(hidden, position_ids=positions[None])
        normed = self._over(step.kv).run(
            StepTensors(
                step.slots, step.table.contiguous(), step.lengths, step.query_starts, cos[0], sin[0], hidden
            ),
            None if step.adapters is None else step_rows(step.adapters),
        )  # fmt: skip
        logits = torch.empty(len(keep), self._head.num_outputs, dtype=hidden.dtype)
        if len(keep):
            kernels.linear(normed.index_select(0, keep), self._head, logits)
        return logits, normed

    def _over(self, kv: PagedKV) -> Layers:
        """The layers over that cache, made when it is first seen: there is one while a server lives."""
        if self._layers is None or self._kv is not kv:
            caches = [Caches(layer.key, layer.value) for layer in kv.layers]
            self._kv, self._layers = kv, Layers(
                self._parts, caches, self._final_norm, self._tables, gelu=self._gelu
            )  # fmt: skip
        return self._layers


def native_decoder(model: LoadedModel) -> NativeDecoder | None:
    """The decoder of a model whose linear layers are merged and packed; None for one of another shape."""
    if type(model.module).__name__ not in SHAPED_LIKE_LLAMA or not isinstance(model.module.lm_head, NativeLinear):
        return None
    layers = [decoder_layer(layer) for layer in model.module.model.layers]
    activations = {type(layer.mlp.act_fn).__name__ for layer in model.module.model.layers}
    rotary_size = 2 * len(model.module.model.rotary_emb.inv_freq)
    head_size = model.module.model.layers[0].self_attn.head_dim
    known = len(activations) == 1 and activations <= GELU_BY_ACTIVATION.keys()
    if None in layers or not known or rotary_size != head_size:
        return None
    parts = [layer for layer in layers if layer is not None]
    gelu = GELU_BY_ACTIVATION[activations.pop()]
    return NativeDecoder(model, parts, norm_of(model.module.model.norm), gelu=gelu)


def decoder_layer(layer: Any) -> LayerParts | None:
    """What is computed with of a layer of `transformers`; None where it is not as expected."""
    attention, mlp = layer.self_attn, layer.mlp
    packed = [
        merged(attention, "q_proj", "k_proj", "v_proj"), attention.o_proj, merged(mlp, "gate_proj", "up_proj"),
        mlp.down_proj,
    ]  # fmt: skip
    if not all(isinstance(part, NativeLinear) for part in packed):
        return None
    qkv, output, gate_up, down = (part.packed for part in packed)
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    has_own = hasattr(attention, "sliding_window")
    window = attention.sliding_window if has_own else getattr(attention.config, "sliding_window", None)
    return LayerParts(
        attention_norm=norm_of(layer.input_layernorm), qkv=qkv,
        query_norm=None if query_norm is None else norm_of(query_norm),
        key_norm=None if key_norm is None else norm_of(key_norm),
        rotated=bool(getattr(attention, "use_rope", True)), scale=attention.scaling, window=window,
        attention_output=output, mlp_norm=norm_of(layer.post_attention_layernorm), gate_up=gate_up, down=down,
    )  # fmt: skip


def merged(parent: Any, *names: str) -> nn.Module | None:
    """The one layer that stands for those of `parent` called `names`; None if they are not merged, in this order."""
    first, *others = (getattr(parent, name) for name in names)
    if not isinstance(first, MergedLinear) or not all(isinstance(other, MergedPart) for other in others):
        return None
    return first.whole if first.sizes == [part.out_features for part in (first, *others)] else None


def norm_of(module: Any) -> Norm:
    """The norm's weight and epsilon."""
    return Norm(module.weight.detach(), float(module.variance_epsilon))
