"""Adapters on the project's CPU kernels, which add them within a layer's own product. Knows packed layers, no files."""

from functools import partial

from model_svc.model.adapter_files import AdapterParts
from model_svc.model.adapter_places import Places
from model_svc.model.native_decoder import NativeDecoder
from model_svc.model.native_linear import NativeLinear
from model_svc.model.step_adapters import StepAdapters, step_rows
from model_svc.native.adapters import AdapterTable, PackedAdapter, StepRows, pack_adapter
from model_svc.native.kernels import Adapted


class NativeAdapter(dict[int, PackedAdapter]):
    """An adapter's packed weights by place. Host and device are one here."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(packed.num_bytes for packed in self.values())


class NativeProducts:
    """See `AdapterProducts`. Every place is a NativeLinear."""

    def __init__(self, places: Places, num_slots: int, decoder: NativeDecoder | None) -> None:
        """`decoder`: what computes in place of the modules, if anything does."""
        self.now: StepAdapters | None = None
        self._places = places
        self._tables = [AdapterTable(num_slots) for _ in places.all]
        self._rows: tuple[StepAdapters, StepRows] | None = None
        tables: dict[int, AdapterTable] = {}
        for place, table in zip(places.all, self._tables, strict=True):
            assert isinstance(place.module, NativeLinear)
            place.module.adapted = partial(self._adapted, table)
            tables[id(place.module.packed)] = table
        if decoder is not None:
            decoder.adapt(tables)

    def pack(self, parts: AdapterParts) -> NativeAdapter:
        """See `AdapterProducts`."""
        return NativeAdapter(
            {index: pack_adapter(found, self._places.all[index].num_outputs) for index, found in parts.items()}
        )

    def put(self, slot: int, adapter: NativeAdapter | None) -> None:
        """See `AdapterProducts`. Moves nothing."""
        for index, table in enumerate(self._tables):
            table.set(slot, None if adapter is None else adapter.get(index))

    def _adapted(self, table: AdapterTable) -> Adapted | None:
        """What a layer adds in the pass that is under way."""
        if self.now is None:
            return None
        if self._rows is None or self._rows[0] is not self.now:
            self._rows = (self.now, step_rows(self.now))
        return Adapted(table, self._rows[1])
