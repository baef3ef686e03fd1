"""Adapters by Triton kernels, on a GPU: lays out the launches of `triton_adapter_kernels`. Imports Triton.

An adapter is one block of memory on the host, pinned, and one on the device while it has a slot: a copy that nothing
waits for. A table on the device says where each slot's weights are, layer by layer, so that recorded steps need not be
recorded anew when adapters change.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from model_svc.model import triton_adapter_kernels
from model_svc.model.adapter_files import AdapterParts
from model_svc.model.adapter_places import Place, Places
from model_svc.model.step_adapters import StepAdapters

DOWN: Any = triton_adapter_kernels.down_kernel
UP: Any = triton_adapter_kernels.up_kernel

FEW_TOKENS = 256
"""Up to so many, tiles are small: most slots have few of them."""
BLOCK_R, BLOCK_K, BLOCK_N = 16, 64, 64
ALIGNMENT = 16
"""Bytes, of every matrix."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """Where in an adapter's memory a place's weights are, in elements, and its ranks."""

    down: int
    scale: int
    """In the adapter's scales."""
    num_ranks: int
    ups: tuple[tuple[int, int, int], ...]
    """For each part of the place: where B is, its first rank, and how many; none has 0."""


@dataclass(frozen=True, slots=True)
class TritonAdapter:
    """An adapter on the host."""

    weights: Tensor
    """Flat, in the model's type."""
    scales: Tensor
    """Flat, fp32."""
    matrices: dict[int, Matrices]
    """By place."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes on the device."""
        return self.weights.nbytes + self.scales.nbytes


class TritonProducts:
    """See `AdapterProducts`. Adds to what each place's module gives, whatever it is."""

    def __init__(self, places: Places, num_slots: int, device: torch.device, max_ranks: int) -> None:
        """`max_ranks`: most ranks of one layer."""
        self.now: StepAdapters | None = None
        self._places, self._device, self._max_ranks = places, device, max_ranks
        most_parts = max(len(place.parts) for place in places.all)
        with torch.inference_mode():  # like all else that a step makes
            self._table = torch.zeros(len(places.all), num_slots, 3 + 3 * most_parts, dtype=torch.int64, device=device)
            self._parts = [
                torch.tensor([[part.first_output, part.num_outputs] for part in place.parts], device=device)
                for place in places.all
            ]
        self._held: list[tuple[Tensor, Tensor] | None] = [None] * num_slots
        """The memory that the table points into."""
        for index, place in enumerate(places.all):
            place.module.register_forward_hook(partial(self._add, index, place))

    def pack(self, parts: AdapterParts) -> TritonAdapter:
        """See `AdapterProducts`."""
        weights = Packing(next(iter(parts.values()))[0].down.dtype)
        scales = Packing(torch.float32)
        matrices: dict[int, Matrices] = {}
        for index, found in parts.items():
            down = weights.add(torch.cat([part.down for part in found]))
            scale = scales.add(torch.cat([torch.full((len(part.down),), part.scale) for part in found]))
            first, ups = 0, dict[int, tuple[int, int, int]]()
            for part in found:
                ups[part.first_output] = (weights.add(part.up), first, len(part.down))
                first += len(part.down)
            of_parts = tuple(ups.get(part.first_output, (0, 0, 0)) for part in self._places.all[index].parts)
            matrices[index] = Matrices(down, scale, first, of_parts)
        pinned = self._device.type == "cuda"
        with torch.cuda.device(self._device) if pinned else nullcontext():  # another thread begins with the first GPU
            return TritonAdapter(weights.flat(pinned=pinned), scales.flat(pinned=pinned), matrices)

    @torch.inference_mode()
    def put(self, slot: int, adapter: TritonAdapter | None) -> None:
        """See `AdapterProducts`."""
        rows = torch.zeros(self._table.shape[0], self._table.shape[2], dtype=torch.int64)
        held: tuple[Tensor, Tensor] | None = None
        if adapter is not None:
            weights = adapter.weights.to(self._device, non_blocking=True)
            scales = adapter.scales.to(self._device, non_blocking=True)
            held = (weights, scales)
            size = weights.element_size()
            for index, found in adapter.matrices.items():
                row = [weights.data_ptr() + size * found.down, found.num_ranks, scales.data_ptr() + 4 * found.scale]
                for up, first, num_ranks in found.ups:
                    row += [weights.data_ptr() + size * up, first, num_ranks]
                rows[index, : len(row)] = torch.tensor(row)
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        self._table[:, slot].copy_(rows, non_blocking=True)
        self._held[slot] = held

    def _add(self, index: int, place: Place, module: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
        """Add in place what the step's adapters do at a place to what the module gave."""
        step = self.now
        if step is None:
            return
        inputs = arguments[0].reshape(-1, place.num_inputs).contiguous()
        outputs, table = output.view(-1, place.num_outputs), self._table[index]
        num_tokens, num_slots, width = len(step.tokens), step.num_slots, self._max_ranks * len(place.parts)
        block_m = 16 if num_tokens <= FEW_TOKENS else 64
        tiles = triton.cdiv(num_tokens, block_m)
        hidden = torch.empty(num_tokens, width, dtype=torch.float32, device=inputs.device)
        interpreted = not inputs.is_cuda
        DOWN[(num_slots, tiles, triton.cdiv(width, BLOCK_R))](
            inputs, hidden, step.tokens, step.starts, table, place.num_inputs, width, table.shape[1],
            BLOCK_M=block_m, BLOCK_R=BLOCK_R, BLOCK_K=BLOCK_K, INTERPRETED=interpreted,
        )  # fmt: skip
        blocks = triton.cdiv(max(part.num_outputs for part in place.parts), BLOCK_N)
        UP[(num_slots, tiles, blocks * len(place.parts))](
            hidden, outputs, step.tokens, step.starts, table, self._parts[index], place.num_outputs, width,
            table.shape[1], blocks, BLOCK_M=block_m, BLOCK_N=BLOCK_N, BLOCK_R=BLOCK_R, INTERPRETED=interpreted,
        )  # fmt: skip


class Packing:
    """Matrices put one after the other, each aligned."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._parts, self._at = dtype, list[Tensor](), 0

    def add(self, matrix: Tensor) -> int:
        """Where it begins, in elements."""
        begin, step = self._at, ALIGNMENT // self._dtype.itemsize
        padding = -matrix.numel() % step
        self._parts += [matrix.flatten().to(self._dtype), torch.zeros(padding, dtype=self._dtype)]
        self._at += matrix.numel() + padding
        return begin

    def flat(self, *, pinned: bool) -> Tensor:
        """All of them."""
        whole = torch.cat(self._parts)
        return whole.pin_memory() if pinned else whole
