"""The structures of decoder.cpp, filled from tensors, and its one function: every layer of a decoder in one call.

The caller keeps the tensors alive that a `Layer` points to. Knows shapes; which model they belong to, it does not.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model_svc.native.adapters import AdapterTable, StepRows
from model_svc.native.library import library
from model_svc.native.packing import PackedWeight

_SIZE, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class Norm(NamedTuple):
    """An RMS norm: weight [size], and what is added to the mean square."""

    weight: Tensor
    eps: float


class LayerParts(NamedTuple):
    """One layer, x += attention(norm(x)); x += mlp(norm(x)), and its part of the cache."""

    attention_norm: Norm
    qkv: PackedWeight
    query_norm: Norm | None
    """Of each head, before it is rotated."""
    key_norm: Norm | None
    rotated: bool
    scale: float
    window: int | None
    attention_output: PackedWeight
    mlp_norm: Norm
    gate_up: PackedWeight
    """Gate first."""
    down: PackedWeight


class Weight(ctypes.Structure):
    """A packed weight."""

    _fields_ = [
        ("kind", _SIZE), ("num_outputs", _SIZE), ("num_inputs", _SIZE),
        ("packed", _POINTER), ("scale", _POINTER), ("bias", _POINTER), ("adapters", _POINTER),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    """A layer's weights and cache."""

    _fields_ = [
        *((name, _POINTER) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, Weight) for name in ("qkv", "attention_output", "gate_up", "down")),
        ("key_cache", _POINTER), ("value_cache", _POINTER),
        *((name, _SIZE) for name in ("rotated", "window", "num_heads", "num_kv_heads", "key_size", "value_size")),
        *((name, _FLOAT) for name in ("attention_eps", "mlp_eps", "head_eps", "attention_scale")),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """What one call computes with."""

    _fields_ = [
        *(
            (name, _SIZE)
            for name in ("is_bf16", "gelu", "num_layers", "num_tokens", "num_rows", "table_width", "block_size")
        ),
        *(
            (name, _POINTER)
            for name in (
                "slots", "table", "lengths", "query_starts", "cos", "sin", "hidden", "normed", "qkv", "query",
                "attended", "gate_up", "activated", "final_norm", "row_adapters",
            )
        ),
        ("final_eps", _FLOAT),
    ]  # fmt: skip


class Caches(NamedTuple):
    """Keys [num_blocks, block_size, num_kv_heads, key_size] and values of one layer."""

    key: Tensor
    value: Tensor


class StepTensors(NamedTuple):
    """A step: `PagedStep`'s int64 tensors, and what the layers compute on, contiguous and on the CPU."""

    slots: Tensor
    table: Tensor
    lengths: Tensor
    query_starts: Tensor
    cos: Tensor
    """[T, key_size]; sin likewise."""
    sin: Tensor
    hidden: Tensor
    """[T, hidden]: the embeddings; overwritten."""


class Layers:
    """The layers of one decoder over one cache."""

    def __init__(
        self,
        parts: Sequence[LayerParts],
        caches: Sequence[Caches],
        final_norm: Norm,
        tables: Mapping[int, AdapterTable],
        *,
        gelu: bool,
    ) -> None:
        """`tables`: of adapters, by the id of the weight they change. Raises ValueError where sizes do not fit."""
        self._held = (parts, caches, final_norm, tables)  # the structures hold addresses only
        layers = (_layer(part, cache, tables) for part, cache in zip(parts, caches, strict=True))
        self._layers = (Layer * len(parts))(*layers)
        self._final_norm, self._gelu = final_norm, gelu
        self._block_size = caches[0].key.shape[1]
        self._widths = [
            max(widths)
            for widths in zip(
                *(
                    (layer.qkv.num_outputs, layer.num_heads * layer.key_size, layer.num_heads * layer.value_size,
                     layer.gate_up.num_outputs, layer.down.num_inputs)
                    for layer in self._layers
                ),
                strict=True,
            )
        ]  # fmt: skip

    def run(self, step: StepTensors, rows: StepRows | None = None) -> Tensor:
        """[T, hidden]: what the final norm gives. Writes the tokens' keys and values into the cache.

        `rows`: the tokens' adapters; None: no token has one.
        """
        num_tokens, dtype = len(step.hidden), step.hidden.dtype
        normed = torch.empty_like(step.hidden)
        scratch = [torch.empty(num_tokens * width, dtype=dtype) for width in self._widths]
        tensors = [*step, normed, *scratch, self._final_norm.weight]
        if not all(tensor.is_contiguous() for tensor in tensors):
            raise ValueError("a decoder takes contiguous tensors")
        call = Step(
            dtype == torch.bfloat16, self._gelu, len(self._layers), num_tokens, len(step.lengths), step.table.shape[1],
            self._block_size, *(tensor.data_ptr() for tensor in tensors), None if rows is None else rows.address,
            self._final_norm.eps,
        )  # fmt: skip
        library().tokenwire_decoder(self._layers, ctypes.byref(call))
        return normed


def _layer(parts: LayerParts, cache: Caches, tables: Mapping[int, AdapterTable]) -> Layer:
    num_kv_heads, key_size = cache.key.shape[2:]
    value_size = cache.value.shape[3]
    num_heads, rest = divmod(parts.qkv.num_outputs - num_kv_heads * (key_size + value_size), key_size)
    fits = (
        not rest
        and num_heads % num_kv_heads == 0
        and parts.attention_output.num_inputs == num_heads * value_size
        and parts.attention_output.num_outputs == parts.qkv.num_inputs == parts.gate_up.num_inputs
        and parts.down.num_outputs == parts.qkv.num_inputs
        and parts.gate_up.num_outputs == 2 * parts.down.num_inputs
    )
    if not fits:
        sizes = [(part.num_outputs, part.num_inputs) for part in parts if isinstance(part, PackedWeight)]
        raise ValueError(f"the sizes of a layer do not fit together: {sizes}, heads of {key_size} and {value_size}")
    head_norm = parts.query_norm or parts.key_norm
    weights = (parts.qkv, parts.attention_output, parts.gate_up, parts.down)
    return Layer(
        parts.attention_norm.weight.data_ptr(), parts.mlp_norm.weight.data_ptr(),
        None if parts.query_norm is None else parts.query_norm.weight.data_ptr(),
        None if parts.key_norm is None else parts.key_norm.weight.data_ptr(),
        *(_weight(part, tables.get(id(part))) for part in weights),
        cache.key.data_ptr(), cache.value.data_ptr(), parts.rotated, parts.window or 0, num_heads, num_kv_heads,
        key_size, value_size, parts.attention_norm.eps, parts.mlp_norm.eps,
        0.0 if head_norm is None else head_norm.eps, parts.scale,
    )  # fmt: skip


def _weight(packed: PackedWeight, table: AdapterTable | None) -> Weight:
    scale, bias = (None if part is None else part.data_ptr() for part in (packed.scale, packed.bias))
    return Weight(
        packed.kind, packed.num_outputs, packed.num_inputs, packed.storage.data_ptr(), scale, bias,
        None if table is None else table.address,
    )  # fmt: skip
