"""The linear layers of a loaded model that adapters may change, under the names that the checkpoint has for them.

Looks at the model as it is served: where layers were merged, several names stand for parts of one. Layers that do not
see every token of a step, once and in order, are left out, and so is the output head. Knows modules; does not know
adapters.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model_svc.model.loader import LoadedModel
from model_svc.model.merged_linear import MergedLinear, MergedPart, small_pass
from model_svc.model.native_linear import NativeLinear
from model_svc.model.quantized import Int4Linear, Int8Linear

LINEAR = (nn.Linear, NativeLinear, Int8Linear, Int4Linear)
NUM_SMALL_PASS_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One layer of the checkpoint."""

    name: str
    first_output: int
    num_outputs: int


@dataclass(frozen=True, slots=True)
class Place:
    """One matrix product of the model, of one layer of the checkpoint or of several."""

    module: nn.Module
    num_inputs: int
    num_outputs: int
    parts: tuple[Part, ...]
    """In the order of their outputs."""


class Places:
    """All of a model."""

    def __init__(self, places: list[Place]) -> None:
        self.all = places
        self._by_name = {
            part.name: (index, part) for index, place in enumerate(places) for part in place.parts
        }  # fmt: skip

    def find(self, name: str) -> tuple[int, Part] | None:
        """Which place, and which part of it, is the layer of this name."""
        return self._by_name.get(name)


def find_places(model: LoadedModel) -> Places:
    """Runs a small forward pass. Empty for a model that cannot be run so."""
    parts: dict[nn.Module, list[tuple[int, str]]] = {}
    head = model.module.get_output_embeddings()
    for name, module in model.module.named_modules():
        if isinstance(module, MergedLinear):
            parts.setdefault(module.whole, []).append((0, name))
        elif isinstance(module, MergedPart):
            parts.setdefault(module.merged.whole, []).append((module.index, name))
        elif isinstance(module, LINEAR) and module is not head and module not in parts:
            parts[module] = [(0, name)]
    whole = seen_whole(model, list(parts))
    return Places([place_of(module, sorted(names), model) for module, names in parts.items() if module in whole])


def place_of(module: Any, names: list[tuple[int, str]], model: LoadedModel) -> Place:
    """The place of a module and the names of its parts, by their order."""
    found: list[Part] = []
    first = 0
    for _, name in names:
        size = int(model.module.get_submodule(name).out_features)
        found.append(Part(name, first, size))
        first += size
    return Place(module, int(module.in_features), int(module.out_features), tuple(found))


def seen_whole(model: LoadedModel, modules: list[nn.Module]) -> set[nn.Module]:
    """Those that a forward pass calls once, with all of its tokens."""
    num_calls: Counter[nn.Module] = Counter()
    whole: set[nn.Module] = set()

    def note(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        num_calls[module] += 1
        if arguments and isinstance(arguments[0], Tensor):
            if arguments[0].numel() == NUM_SMALL_PASS_TOKENS * module.in_features:
                whole.add(module)

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        small_pass(model)
    except Exception:  # whatever a model's unknown code raises
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return {module for module in whole if num_calls[module] == 1}
