"""The adapters of one model: read from files, kept on the host, put into slots of the device, applied to a step.

How the products are made is `AdapterProducts`' to know: by the project's CPU kernels, by a Triton kernel on a GPU,
or by torch. Knows neither sequences nor who may use an adapter; which one is in which slot it is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from model_svc.model.adapter_files import AdapterParts, read_adapter
from model_svc.model.adapter_places import Places
from model_svc.model.step_adapters import StepAdapters

FILE_BYTES_PER_BYTE = 4
"""A file may hold float32 where the model is served in a narrower type."""


class HostAdapter(Protocol):
    """An adapter on the host, as its products want it."""

    @property
    def num_bytes(self) -> int:
        """What it takes on the device."""


class AdapterProducts(Protocol):
    """What adds adapters' products to those of the model's layers."""

    now: StepAdapters | None
    """Of the forward pass that is under way."""

    def pack(self, parts: AdapterParts) -> Any:
        """A HostAdapter. May be called by a thread beside the one that runs the model."""

    def put(self, slot: int, adapter: Any | None) -> None:
        """Have a slot hold an adapter that `pack` made; None: nothing. On a GPU nothing is waited for."""


class AdapterLimits(NamedTuple):
    """Bounds that the setting of adapters keeps."""

    num_slots: int
    max_rank: int


class AdapterBank:
    """See the module. All but `read` belongs to the thread that runs the model."""

    def __init__(self, places: Places, products: AdapterProducts, limits: AdapterLimits, dtype: torch.dtype) -> None:
        self._limits = limits
        self._places, self._products, self._dtype = places, products, dtype
        self._adapters: dict[str, HostAdapter] = {}
        self._in_slot: list[str] = [""] * limits.num_slots
        self.num_uploads = 0
        """Times that a slot got another adapter."""

    def read(self, folder: Path, max_bytes: int) -> HostAdapter:
        """An adapter of at most `max_bytes` from files, ready to be added. Raises NotFound and FailedPrecondition."""
        parts = read_adapter(
            folder, self._places, self._dtype, FILE_BYTES_PER_BYTE * max_bytes, self._limits.max_rank
        )  # fmt: skip
        packed: HostAdapter = self._products.pack(parts)
        return packed

    def add(self, name: str, adapter: HostAdapter) -> None:
        """From now on it can be used by that name, which nobody has."""
        self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Nobody uses it any more."""
        del self._adapters[name]
        for slot, held in enumerate(self._in_slot):
            if held == name:
                self._in_slot[slot] = ""
                self._products.put(slot, None)

    def place(self, slot: int, name: str) -> None:
        """See that the slot holds this adapter, instead of one that no step under way uses any more."""
        if self._in_slot[slot] != name:
            self._products.put(slot, self._adapters[name])
            self._in_slot[slot] = name
            self.num_uploads += 1

    @contextmanager
    def applied(self, step: StepAdapters | None) -> Iterator[None]:
        """Within, the model's layers add what the step's adapters do."""
        self._products.now = step
        try:
            yield
        finally:
            self._products.now = None
