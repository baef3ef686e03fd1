"""Adapters of linear layers in the layout that `adapters.h` reads, and its structures, filled from tensors.

The caller keeps alive what a table points to. Knows shapes; which adapter it is and who uses it, it does not.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from model_svc.native.packing import BLOCK, LANES

_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p


class AdapterPart(NamedTuple):
    """What an adapter adds to some outputs of a layer: scale · up · (down · x)."""

    first_output: int
    down: Tensor
    """[rank, inputs]."""
    up: Tensor
    """[outputs, rank]."""
    scale: float


class Adapter(ctypes.Structure):
    """One adapter of one layer; all null: it has none."""

    _fields_ = [
        ("down", _POINTER), ("scale", _POINTER), ("up", _POINTER), ("blocks", _POINTER), ("num_ranks", _SIZE),
    ]  # fmt: skip


class RowAdapters(ctypes.Structure):
    """A step's tokens by adapter."""

    _fields_ = [("slots", _POINTER), ("tokens", _POINTER), ("starts", _POINTER), ("num_slots", _SIZE)]


class StepRows:
    """A step's tokens by adapter, as the kernels take them: all int64, on the CPU."""

    def __init__(self, slots: Tensor, tokens: Tensor, starts: Tensor) -> None:
        """`slots` [T]: each token's, -1 for none; `tokens` [M], slot after slot; `starts` [num_slots + 1]."""
        self._held = (slots, tokens, starts)
        self.num_tokens = len(slots)
        self._rows = RowAdapters(slots.data_ptr(), tokens.data_ptr(), starts.data_ptr(), len(starts) - 1)

    @property
    def address(self) -> int:
        """Of the structure."""
        return ctypes.addressof(self._rows)


class PackedAdapter(NamedTuple):
    """One adapter of one layer, packed."""

    down: Tensor
    scale: Tensor
    up: Tensor
    blocks: Tensor
    num_ranks: int

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(each.nbytes for each in (self.down, self.scale, self.up, self.blocks))


class AdapterTable:
    """One linear layer's adapters, by slot. What is set stays alive while it is there."""

    def __init__(self, num_slots: int) -> None:
        self._entries = (Adapter * num_slots)()
        self._held: list[PackedAdapter | None] = [None] * num_slots

    @property
    def address(self) -> int:
        """Of the entries."""
        return ctypes.addressof(self._entries)

    def set(self, slot: int, packed: PackedAdapter | None) -> None:
        """Put an adapter there; None: nothing."""
        self._held[slot] = packed
        tensors = () if packed is None else (packed.down, packed.scale, packed.up, packed.blocks)
        values = [tensor.data_ptr() for tensor in tensors]
        self._entries[slot] = Adapter(*values, packed.num_ranks) if packed is not None else Adapter()


def pack_adapter(parts: Sequence[AdapterPart], num_outputs: int) -> PackedAdapter:
    """Parts in the order of their outputs, all in float32 or all in bfloat16, contiguous or not."""
    dtype, unit = parts[0].down.dtype, 2 if parts[0].down.dtype == torch.bfloat16 else 1
    ranks = [-(-len(part.down) // 2) * 2 for part in parts]  # whole units
    num_ranks = -(-sum(ranks) // LANES) * LANES
    num_inputs = parts[0].down.shape[1]
    down = torch.zeros(num_ranks, -(-num_inputs // unit) * unit, dtype=dtype)
    scale = torch.zeros(num_ranks)
    first_ranks, first = [], 0
    for part, rank in zip(parts, ranks, strict=True):
        first_ranks.append(first)
        down[first : first + len(part.down), :num_inputs] = part.down
        scale[first : first + len(part.down)] = part.scale
        first += rank
    up, blocks = _pack_up(parts, first_ranks, ranks, num_outputs, unit)
    return PackedAdapter(_in_units(down, unit), scale, up, blocks, num_ranks)


def _pack_up(
    parts: Sequence[AdapterPart], first_ranks: list[int], ranks: list[int], num_outputs: int, unit: int
) -> tuple[Tensor, Tensor]:
    """The units of `up` and where each block's are: a block that several parts share reads the ranks of all of them."""
    blocks = torch.zeros(-(-num_outputs // BLOCK), 3, dtype=torch.int64)
    packed: list[Tensor] = []
    at, shared = 0, set[int]()
    for part, first_rank, rank in zip(parts, first_ranks, ranks, strict=True):
        stop = part.first_output + len(part.up)
        # A block is this part's own where it begins and ends in it, or with the last output of all.
        own_first, own_stop = (
            -(-part.first_output // BLOCK),
            (stop if stop < num_outputs else stop + BLOCK - 1) // BLOCK,
        )
        shared |= {part.first_output // BLOCK, (stop - 1) // BLOCK} - set(range(own_first, own_stop))
        if own_first >= own_stop:
            continue
        own = part.up[own_first * BLOCK - part.first_output : own_stop * BLOCK - part.first_output]
        own = pad(own, (0, rank - own.shape[1], 0, (own_stop - own_first) * BLOCK - len(own)))
        own = own.view(own_stop - own_first, BLOCK, rank // unit, unit).transpose(1, 2).contiguous()
        packed.append(own.flatten())
        num_units = rank // unit
        blocks[own_first:own_stop, 0], blocks[own_first:own_stop, 1] = first_rank // unit, num_units
        blocks[own_first:own_stop, 2] = at + torch.arange(own_stop - own_first) * num_units
        at += (own_stop - own_first) * num_units
    for block in sorted(shared):
        there = [
            (part, first_rank, rank)
            for part, first_rank, rank in zip(parts, first_ranks, ranks, strict=True)
            if part.first_output < (block + 1) * BLOCK and part.first_output + len(part.up) > block * BLOCK
        ]
        first_rank, last_rank = there[0][1], there[-1][1] + there[-1][2]
        mixed = torch.zeros(BLOCK, last_rank - first_rank, dtype=parts[0].up.dtype)
        for part, rank_from, _ in there:
            begin, end = (
                max(part.first_output, block * BLOCK),
                min(part.first_output + len(part.up), (block + 1) * BLOCK),
            )
            rows = part.up[begin - part.first_output : end - part.first_output]
            columns = slice(rank_from - first_rank, rank_from - first_rank + rows.shape[1])
            mixed[begin - block * BLOCK : end - block * BLOCK, columns] = rows
        packed.append(_in_units(mixed, unit).flatten())
        num_units = (last_rank - first_rank) // unit
        blocks[block] = torch.tensor([first_rank // unit, num_units, at])
        at += num_units
    return torch.cat(packed), blocks


def _in_units(rows: Tensor, unit: int) -> Tensor:
    """[rows, columns] as [columns / unit, rows, unit]."""
    return rows.view(len(rows), -1, unit).transpose(0, 1).contiguous()
