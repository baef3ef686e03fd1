"""Reads a PEFT adapter's weights from a folder and fits them to the layers of the model: safetensors only.

What does not fit is refused with the tensor's name. Knows files and shapes; does not know who asks for the adapter.
Source of the names: PEFT's `get_peft_model_state_dict`.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_svc.adapter_config import WEIGHTS_NAME, AdapterConfig, read_adapter_config
from model_svc.model.adapter_places import Part, Places
from model_svc.native.adapters import AdapterPart
from tokenwire.errors import FailedPrecondition

PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"

AdapterParts = dict[int, list[AdapterPart]]
"""What an adapter adds, by place; the parts of each in the order of their outputs."""


def read_adapter(folder: Path, places: Places, dtype: torch.dtype, max_file_bytes: int, max_rank: int) -> AdapterParts:
    """The adapter in `folder` for these places, on the CPU in `dtype`. Raises NotFound and FailedPrecondition."""
    config = read_adapter_config(folder)
    if (rank := max(config.rank, *config.ranks.values(), 0)) > max_rank:
        raise refused(f"its rank {rank} is over max_adapter_rank, {max_rank}", config)
    path = folder / WEIGHTS_NAME
    if (size := path.stat().st_size) > max_file_bytes:
        raise refused(f"{WEIGHTS_NAME} has {size} bytes, and adapter_memory allows {max_file_bytes}", config)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise refused(f"{WEIGHTS_NAME} cannot be read ({error})", config) from error
    if not tensors:
        raise refused(f"{WEIGHTS_NAME} holds no tensors", config)
    found: dict[int, list[AdapterPart]] = {}
    for name in sorted(tensors):
        layer = layer_of(name, config)
        if name.endswith(DOWN):
            up_name = name.removesuffix(DOWN) + UP
            if up_name not in tensors:
                raise refused(f"tensor {name!r} is there without {up_name!r}", config)
            place, part = place_of(name, layer, places, config)
            down, up = tensors[name], tensors[up_name]
            check_shapes((name, down), (up_name, up), places.all[place].num_inputs, part, config.rank_of(layer), config)
            found.setdefault(place, []).append(
                AdapterPart(part.first_output, down.to(dtype), up.to(dtype), config.scale_of(layer))
            )
        elif name.removesuffix(UP) + DOWN not in tensors:
            raise refused(f"tensor {name!r} is there without {name.removesuffix(UP) + DOWN!r}", config)
    return {place: sorted(parts, key=lambda part: part.first_output) for place, parts in sorted(found.items())}


def layer_of(name: str, config: AdapterConfig) -> str:
    """The full name of the layer that a tensor belongs to. Raises FailedPrecondition for any other tensor."""
    if not name.startswith(PREFIX) or not name.endswith((DOWN, UP)):
        raise refused(f"tensor {name!r} is not served: lora_A and lora_B of linear layers alone", config)
    return name.removeprefix(PREFIX).removesuffix(DOWN).removesuffix(UP)


def place_of(name: str, layer: str, places: Places, config: AdapterConfig) -> tuple[int, Part]:
    """Where the layer is. Raises FailedPrecondition."""
    found = places.find(layer)
    if found is None:
        raise refused(f"tensor {name!r}: the model has no linear layer {layer!r} that an adapter can change", config)
    return found


def check_shapes(
    down: tuple[str, Tensor], up: tuple[str, Tensor], num_inputs: int, part: Part, rank: int, config: AdapterConfig
) -> None:
    """Raise FailedPrecondition unless both tensors, with their names, fit the layer and the rank."""
    for (name, tensor), wanted in ((down, (rank, num_inputs)), (up, (part.num_outputs, rank))):
        if tuple(tensor.shape) != wanted:
            raise refused(f"tensor {name!r} has shape {list(tensor.shape)}, and {list(wanted)} is wanted", config)
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise refused(f"tensor {name!r} ({tensor.dtype}) holds values that are not finite numbers", config)


def refused(detail: str, config: AdapterConfig) -> FailedPrecondition:
    """The error for weights that do not fit."""
    made_for = f" (it was made for {config.base_model!r})" if config.base_model else ""
    return FailedPrecondition(f"adapter: {detail}{made_for}", reason="ADAPTER_MISMATCH")
