"""Adapters in torch's own products, one after the other: for CPUs without the project's kernels. Knows no files."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from model_svc.model.adapter_files import AdapterParts
from model_svc.model.adapter_places import Places
from model_svc.model.step_adapters import StepAdapters


class TorchAdapter(dict[int, list[Any]]):
    """An adapter's `AdapterPart`s by place. Host and device are one here."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.down.nbytes + part.up.nbytes for parts in self.values() for part in parts)


class TorchProducts:
    """See `AdapterProducts`. Adds to what each place's module gives, whatever it is."""

    def __init__(self, places: Places, num_slots: int) -> None:
        self.now: StepAdapters | None = None
        self._slots: list[TorchAdapter | None] = [None] * num_slots
        for index, place in enumerate(places.all):
            place.module.register_forward_hook(partial(self._add, index))

    def pack(self, parts: AdapterParts) -> TorchAdapter:
        """See `AdapterProducts`. Copies: what was read may be a mapping of its file, which may change."""
        own = {
            place: [part._replace(down=part.down.clone(), up=part.up.clone()) for part in of_place]
            for place, of_place in parts.items()
        }
        return TorchAdapter(own)

    def put(self, slot: int, adapter: TorchAdapter | None) -> None:
        """See `AdapterProducts`. Moves nothing."""
        self._slots[slot] = adapter

    def _add(self, index: int, module: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
        """Add in place what the step's adapters do at a place to what the module gave."""
        if self.now is None:
            return
        inputs = arguments[0].reshape(-1, arguments[0].shape[-1])
        outputs = output.view(-1, output.shape[-1])
        for slot, tokens in self.now.groups:
            adapter = self._slots[slot]
            for part in adapter.get(index, ()) if adapter is not None else ():
                hidden = linear(inputs.index_select(0, tokens), part.down) * part.scale
                span = slice(part.first_output, part.first_output + len(part.up))
                outputs[:, span].index_add_(0, tokens, linear(hidden, part.up))
