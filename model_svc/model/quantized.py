"""Weight-only quantisation of linear layers at load: int8, int4 and fp8; what is computed with stays `model.dtype`.

On a CPU with torch's own packed products, on a GPU through torchao: docs/decisions/0008 has the numbers. Embeddings,
and an output head that shares theirs, stay as they are. What a device or a model cannot do is refused, never ignored.
Does not know whether the quantised model is any good; the probe compares it with itself under eager attention.
"""

import logging
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from model_svc.model.loader import LoadedModel
from model_svc.model.native_linear import NativeLinear
from model_svc.native.packing import INT4_GROUP, int4_groups, pack_int4, pack_int8
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)

FP8_CAPABILITY = (8, 9)
INT4_OUTPUTS = 16
"""torch packs output features by so many."""
MOST_PACKED_ROWS = 8
"""Up to so many tokens torch's int8 product is faster than unpacking the weight and multiplying (measured)."""
LEAST_COVERED = 0.5
"""Of a model's weights outside of embeddings; where fewer can be quantised, nothing is."""


class Int8Linear(nn.Module):
    """y = x (scale · q)ᵀ + bias on a CPU; q int8 [out, in], a scale per output feature."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.float()
        scale = weight.abs().amax(1).div(127).clamp(min=1e-12).to(layer.weight.dtype)
        quantized = weight.div(scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.quantized = nn.Parameter(quantized, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = input.reshape(-1, self.in_features)
        # In float32 torch's product is ten times slower than its own unpacked one.
        if len(rows) <= MOST_PACKED_ROWS and rows.dtype == torch.bfloat16:
            output = torch.ops.aten._weight_int8pack_mm(rows, self.quantized, self.scale)
        else:
            output = linear(rows, self.quantized.to(rows.dtype)) * self.scale
        return _finished(output, self.bias, input)


class Int4Linear(nn.Module):
    """y = x Wᵀ + bias on a CPU in bfloat16; W = offset + scale · (q − 8), a pair for each `INT4_GROUP` inputs."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        quantized, scale, offset = int4_groups(layer.weight)
        self.packed = nn.Parameter(
            torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized, 1), requires_grad=False
        )  # fmt: skip
        pairs = torch.stack((scale, offset), dim=-1).transpose(0, 1).contiguous()  # [in / group, out, 2]
        self.scale_and_offset = nn.Parameter(pairs, requires_grad=False)
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = input.reshape(-1, self.in_features)
        output = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, INT4_GROUP, self.scale_and_offset)
        return _finished(output, self.bias, input)


BY_TORCH: dict[str, Callable[[nn.Linear], nn.Module]] = {"int8": Int8Linear, "int4": Int4Linear}
NATIVE: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "int8": lambda layer: NativeLinear(layer, pack_int8),
    "int4": lambda layer: NativeLinear(layer, pack_int4),
}


def _finished(output: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    """`output` with its bias, in the shape that belongs to `input`."""
    if bias is not None:
        output = output + bias
    return output.view(*input.shape[:-1], -1)


def check_quantization(mode: str, device: torch.device, setting: str = "quantization") -> None:
    """Raise FailedPrecondition where the device or what is installed cannot do it. Cheap: before anything is loaded.

    `setting`: what asks for it.
    """
    if mode == "fp8" and device.type == "cpu":
        raise refused(mode, "a CPU has no 8-bit floating point; use int8 or int4", setting)
    if mode == "none" or device.type == "cpu":
        return
    if find_spec("torchao") is None:
        raise refused(mode, "on a GPU it needs torchao: pip install 'tokenwire[quantization]'", setting)
    if mode == "fp8" and (capability := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        has = f"{device} has {capability[0]}.{capability[1]}"
        raise refused(mode, f"it needs a GPU of compute capability 8.9 or later, and {has}", setting)


def quantize(model: LoadedModel, mode: str, *, natively: bool = False) -> int:
    """Quantise the linear layers of `model` in place, one after the other; how many it was.

    After merging, before the probe. `natively`: for the project's CPU kernels, in bfloat16. `check_quantization` has
    passed. Raises FailedPrecondition.
    """
    if mode == "none":
        return 0
    if mode == "int4" and model.dtype != torch.bfloat16:
        raise refused(mode, f"it computes in bfloat16, and the model is served in {model.dtype}; set --dtype bfloat16")
    if any(isinstance(parameter, DTensor) for parameter in model.module.parameters()):
        raise refused(mode, "the model is sharded; quantised weights cannot be, yet")
    layers = quantizable(model.module, mode)
    covered, weights = sum(layer.weight.numel() for layer in layers.values()), num_weights(model.module)
    if covered < LEAST_COVERED * weights:
        raise refused(
            mode, f"only {covered:,} of the {weights:,} weights of {type(model.module).__name__} are in linear layers "
            "that it can be used for (experts of a mixture are not)",
        )  # fmt: skip
    if model.device.type == "cpu":
        made = (NATIVE if natively else BY_TORCH)[mode]
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            setattr(model.module.get_submodule(parent), child, made(layer))
    else:
        quantize_by_torchao(model.module, mode, set(layers))
    log.info("quantization: %s for %d layers, with %d of %d weights", mode, len(layers), covered, weights)
    return len(layers)


def quantizable(module: nn.Module, mode: str) -> dict[str, nn.Linear]:
    """The linear layers, by name, that `mode` fits and whose weight nobody else has."""
    owners = Counter(parameter.data_ptr() for _, parameter in module.named_parameters(remove_duplicate=False))
    return {
        name: layer
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear
        and owners[layer.weight.data_ptr()] == 1
        and (mode != "int4" or not (layer.in_features % INT4_GROUP or layer.out_features % INT4_OUTPUTS))
    }


def num_weights(module: nn.Module) -> int:
    """Weights that products are made with: all in matrices, those of embeddings (and what is tied to them) apart."""
    embedded = {
        parameter.data_ptr()
        for layer in module.modules()
        if isinstance(layer, nn.Embedding)
        for parameter in layer.parameters()
    }
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if parameter.dim() > 1 and parameter.data_ptr() not in embedded
    )


def quantize_by_torchao(module: nn.Module, mode: str, names: set[str]) -> None:
    """Quantise the layers called `names` with torchao, which is only imported here: it takes seconds."""
    torchao: Any = import_module("torchao.quantization")
    config = {
        "int8": lambda: torchao.Int8WeightOnlyConfig(),
        "int4": lambda: torchao.Int4WeightOnlyConfig(
            group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d"
        ),
        "fp8": lambda: torchao.Float8WeightOnlyConfig(),
    }[mode]()  # fmt: skip
    torchao.quantize_(module, config, filter_fn=lambda _, name: name in names)


def refused(mode: str, why: str, setting: str = "quantization") -> FailedPrecondition:
    """The error for a quantisation that cannot be had."""
    return FailedPrecondition(f"{setting}: {mode} cannot be used: {why}", reason="QUANTIZATION_UNSUPPORTED")
