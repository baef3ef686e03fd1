"""Linear layers on the project's CPU kernels: weights packed once at load, plain or quantised.

A packed layer takes the place of a `torch.nn.Linear` wherever a model of `transformers` has one, so that every model
gains. Knows no model and no attention. docs/decisions/0010-own-kernels-for-cpus.md says why
torch's own product is not used.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model_svc.model.merged_linear import mergeable
from model_svc.native import kernels
from model_svc.native.kernels import Adapted
from model_svc.native.packing import PackedWeight, pack

Pack = Callable[[Tensor, Tensor | None], PackedWeight]


class NativeLinear(nn.Module):
    """y = x Wᵀ + bias, W packed: [..., in_features] -> [..., out_features]."""

    def __init__(self, layer: nn.Linear, pack: Pack = pack) -> None:
        """Packs a copy of the weight of `layer`, by one of the functions in `packing`."""
        super().__init__()
        self.packed = pack(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
        self.register_buffer("storage", self.packed.storage, persistent=False)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.adapted: Callable[[], Adapted | None] = no_adapters
        """Gives what adapters add to the product now."""

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        rows = input.reshape(-1, self.in_features).contiguous()
        output = torch.empty(len(rows), self.out_features, dtype=rows.dtype)
        kernels.linear(rows, self.packed, output, adapted=self.adapted())
        return output.view(*input.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features], unpacked anew: for models that look at it, not for computing with it."""
        identity = torch.eye(self.in_features, dtype=self.packed.dtype)
        columns = torch.empty(self.in_features, self.out_features, dtype=self.packed.dtype)
        kernels.linear(identity, replace(self.packed, bias=None), columns)
        return columns.T

    @property
    def bias(self) -> Tensor | None:
        """[out_features]."""
        return None if self.packed.bias is None else self.packed.bias[: self.out_features].to(self.packed.dtype)


def no_adapters() -> None:
    """Nothing is added."""
    return None


def pack_linears(module: Any) -> int:
    """Pack the linear layers of a model that nobody else shares, in place, and its output head; how many it was.

    `module`: of `transformers`. A head that shares the embeddings' weight gets a packed copy of its own.
    """
    places = {name: layer for layer, name in mergeable(module).items()}
    head = module.get_output_embeddings()
    for name, layer in module.named_modules():
        if layer is head and type(layer) is nn.Linear:
            places[name] = layer
    for name, layer in places.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, NativeLinear(layer))
    return len(places)
