"""Linear layers of one parent that read the same input become one matrix product: q, k and v; gate and up.

No list of models: one small forward pass shows which linear layers were handed the very same tensor. Their weights move
into one layer, `MergedLinear.whole`; in their places stand modules that give the slices. The first of a group computes
the product and holds the others' slices for that input until each has been taken; whoever is called with anything else
computes for itself. Knows neither attention nor what a parent does with the results. A layer sharded by rows of its
weight (tensor parallelism) merges like any other, with the part it holds; all ranks must then merge together.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.nn.functional import linear

from model_svc.model.attention import ATTENTION_NAME
from model_svc.model.loader import LoadedModel


class MergedLinear(nn.Module):
    """Stands for the first of several linear layers, and computes them all. Not for several threads."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        """Takes the weights of `layers` [out_i, in] over; they must have a bias all, or none."""
        super().__init__()
        weights, biases = [local(layer.weight) for layer in layers], [layer.bias for layer in layers]
        self.sizes = [len(weight) for weight in weights]
        self.in_features, self.out_features = weights[0].shape[1], self.sizes[0]
        self.whole = nn.Linear(self.in_features, sum(self.sizes), bias=biases[0] is not None, device="meta")
        self.whole.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        if biases[0] is not None:
            self.whole.bias = nn.Parameter(torch.cat([local(bias) for bias in biases]), requires_grad=False)
        self._input: Tensor | None = None
        self._kept: list[Tensor | None] = []

    def forward(self, input: Tensor) -> Tensor:
        """[..., out_features]; keeps what the others will ask for with this `input`."""
        parts = self.whole(input).split(self.sizes, dim=-1)
        self._input, self._kept = input, list(parts[1:])
        own: Tensor = parts[0]
        return own

    def take(self, index: int, input: Tensor) -> Tensor:
        """The slice of layer `index` (from 1) for `input`: the one kept, which is kept no longer, or a new one."""
        kept = self._kept[index - 1] if self._input is input else None
        if kept is None:
            fresh: Tensor = self.whole(input).split(self.sizes, dim=-1)[index]
            return fresh
        self._kept[index - 1] = None
        if all(part is None for part in self._kept):
            self._input = None
        return kept

    def rows(self, index: int, parameter: Tensor) -> Tensor:
        """Layer `index`'s part of a parameter of `whole`; the same memory."""
        return torch.split(parameter, self.sizes)[index]

    @property
    def weight(self) -> Tensor:
        """The first layer's own, for models that look at it."""
        return self.rows(0, self.whole.weight)

    @property
    def bias(self) -> Tensor | None:
        """The first layer's own."""
        return None if self.whole.bias is None else self.rows(0, self.whole.bias)


class MergedPart(nn.Module):
    """Stands for layer `index` of a group. Has no parameters of its own."""

    def __init__(self, merged: MergedLinear, index: int) -> None:
        super().__init__()
        self._merged = (merged,)  # in a tuple, so that it is not registered here too
        self.index = index
        self.in_features, self.out_features = merged.in_features, merged.sizes[index]

    @property
    def merged(self) -> MergedLinear:
        """What computes for it."""
        return self._merged[0]

    def forward(self, input: Tensor) -> Tensor:
        """[..., out_features]."""
        return self.merged.take(self.index, input)

    @property
    def weight(self) -> Tensor:
        """The layer's own, for models that look at it."""
        return self.merged.rows(self.index, self.merged.whole.weight)

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        bias = self.merged.whole.bias
        return None if bias is None else self.merged.rows(self.index, bias)


def merge_linears(model: LoadedModel) -> int:
    """Merge what can be merged in `model`, in place; how many layers it was.

    A model whose trial pass fails stays as it was: the probe says what is wrong with it.
    """
    groups = shared_inputs(model)
    for parent, names in groups:
        merged = MergedLinear([getattr(parent, name) for name in names])
        setattr(parent, names[0], merged)
        for index, name in enumerate(names[1:], start=1):
            setattr(parent, name, MergedPart(merged, index))
    return sum(len(names) for _, names in groups)


def shared_inputs(model: LoadedModel) -> list[tuple[nn.Module, list[str]]]:
    """Parents, and the names of those of their linear layers that a small forward pass gave the same input."""
    module: nn.Module = model.module
    places = mergeable(module)
    seen: list[tuple[nn.Linear, Tensor, int, Tensor]] = []  # the inputs are held, so that identity means something

    def note(layer: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            seen.append((layer, arguments[0], arguments[0]._version, output))

    hooks = [layer.register_forward_hook(note) for layer in places]
    try:
        small_pass(model)
    except Exception:  # whatever a model's unknown code raises
        return []
    finally:
        for hook in hooks:
            hook.remove()
    num_calls = Counter(id(layer) for layer, *_ in seen)
    groups: dict[Any, tuple[nn.Module, list[str]]] = {}
    for layer, input, version, output in seen:
        if num_calls[id(layer)] == 1 and is_plain_product(layer, input, output):
            parent_name, _, name = places[layer].rpartition(".")
            weight = local(layer.weight)
            # A tensor that was changed in place between two calls is another input.
            key = (parent_name, id(input), version, weight.dtype, weight.device, layer.bias is None)
            groups.setdefault(key, (module.get_submodule(parent_name), []))[1].append(name)
    return [group for group in groups.values() if len(group[1]) > 1]


def mergeable(module: nn.Module) -> dict[nn.Linear, str]:
    """The linear layers of `module` whose weights are theirs alone, and that do nothing else, with their names."""
    names = list(module.named_modules(remove_duplicate=False))
    num_places = Counter(id(found) for _, found in names)
    num_owners = Counter(
        local(parameter).data_ptr() for _, parameter in module.named_parameters(remove_duplicate=False)
    )
    return {
        found: name
        for name, found in names
        if type(found) is nn.Linear
        and num_places[id(found)] == 1
        and all(num_owners[local(parameter).data_ptr()] == 1 for parameter in found.parameters())
        and not (found._forward_hooks or found._forward_pre_hooks)
        and ("forward" not in vars(found) or sharded_by_rows(found))  # tensor parallelism replaces it
    }


def sharded_by_rows(layer: nn.Linear) -> bool:
    """Whether each rank holds some of the layer's outputs."""
    return all(isinstance(each, DTensor) and each.placements == (Shard(0),) for each in layer.parameters())


def is_plain_product(layer: nn.Linear, input: Tensor, output: Any) -> bool:
    """Whether `output` is what the weights held here give: not so where ranks gather their parts afterwards."""
    if "forward" not in vars(layer):
        return True
    bias = None if layer.bias is None else local(layer.bias)
    wanted = linear(input, local(layer.weight), bias)
    return isinstance(output, Tensor) and output.shape == wanted.shape and torch.allclose(output, wanted, rtol=1e-2)


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this rank holds."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def small_pass(model: LoadedModel) -> None:
    """Two tokens through the model, by transformers' own attention. Not in inference mode, which counts no versions."""
    token_ids = torch.tensor([[0, 1]], device=model.device) % model.vocab_size
    positions = torch.tensor([[0, 1]], device=model.device)
    model.module.set_attn_implementation("eager")
    try:
        with torch.inference_mode(False), torch.no_grad():
            model.module(input_ids=token_ids, position_ids=positions, use_cache=False, return_dict=True)
    finally:
        model.module.set_attn_implementation(ATTENTION_NAME)
