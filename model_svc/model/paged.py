"""The paged KV cache as attention sees it, and the plan of one step over it.

A step is one flattened row of T tokens from many sequences, without padding: first the rows with a single token
(decodes), longest context first, then the rows with several (chunks of prompts). Knows blocks, slots and spans of
tokens; knows neither requests nor models, nor how attention is computed (see `attention`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_svc.model.step_adapters import StepAdapters

Ints = NDArray[np.int64]

SMALLEST_SPLIT_TOKENS = 256
"""Decodes share one gather, padded to the longest, unless that is longer than this and over twice the row's own."""


@dataclass(frozen=True, slots=True)
class LayerKVSpec:
    """The shape of one layer's keys and values. Key and value heads may differ in size."""

    num_kv_heads: int
    key_size: int
    value_size: int

    def num_bytes(self, num_positions: int, dtype: torch.dtype) -> int:
        """Memory that `num_positions` positions take."""
        return num_positions * self.num_kv_heads * (self.key_size + self.value_size) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's cache: keys [num_blocks, block_size, num_kv_heads, key_size], values likewise."""

    key: Tensor
    value: Tensor
    key_slots: Tensor
    """`key` as [num_blocks * block_size, num_kv_heads, key_size]; the same memory."""
    value_slots: Tensor


@dataclass(frozen=True, slots=True)
class PagedKV:
    """Every layer's cache. Physical block b of a sequence is row b of each layer; no block is set aside."""

    layers: tuple[LayerKV, ...]
    num_blocks: int
    block_size: int
    dtype: torch.dtype
    device: torch.device

    def clear(self, blocks: Tensor) -> None:
        """Zero these blocks [N] int64 in every layer."""
        for layer in self.layers:
            layer.key.index_fill_(0, blocks, 0)
            layer.value.index_fill_(0, blocks, 0)

    def clear_slots(self, slots: Tensor) -> None:
        """Zero these positions, slots [N] int64, in every layer."""
        for layer in self.layers:
            layer.key_slots.index_fill_(0, slots, 0)
            layer.value_slots.index_fill_(0, slots, 0)


def allocate(
    specs: Sequence[LayerKVSpec], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> PagedKV:
    """A zeroed cache. Zero matters: a masked position still enters as weight 0 × value, and 0 × NaN is NaN."""
    layers: list[LayerKV] = []
    for spec in specs:
        key = _zeros((num_blocks, block_size, spec.num_kv_heads, spec.key_size), dtype, device)
        value = _zeros((num_blocks, block_size, spec.num_kv_heads, spec.value_size), dtype, device)
        layers.append(LayerKV(key, value, key.flatten(0, 1), value.flatten(0, 1)))
    return PagedKV(tuple(layers), num_blocks, block_size, dtype, device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy takes zero pages from the system, which are only made real when first written: start-up stays quick.
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(slots=True)
class DecodeGroup:
    """Rows with one token each that attend together: tokens `start` to `stop` of the flattened row."""

    start: int
    stop: int
    blocks: Tensor
    """[N * M] int64: each row's M blocks; a shorter row repeats its first block, masked."""
    lengths: Tensor
    """[N] int64: positions each row attends to, its new token included."""
    num_positions: int
    """Longest of `lengths`."""
    masked: bool
    """Whether any row is shorter than `num_positions`."""
    dtype: torch.dtype
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """[N, 1, 1, num_positions] to add to the scores, made once per step and window; None: nothing is masked."""
        if window is not None and window >= self.num_positions:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window) if self.masked or window is not None else None
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor:
        position = torch.arange(self.num_positions, device=self.lengths.device)
        last = self.lengths[:, None] - 1
        allowed = position <= last
        if window is not None:
            allowed &= position > last - window
        return additive(allowed, self.dtype)[:, None, None, :]


@dataclass(slots=True)
class PrefillChunk:
    """Several tokens of one sequence: tokens `start` to `stop` of the flattened row, after `num_computed` others."""

    start: int
    stop: int
    num_computed: int
    blocks: Tensor
    """[M] int64: blocks of all its positions, the chunk's own included."""
    dtype: torch.dtype
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def num_positions(self) -> int:
        """Positions the chunk's last token attends to."""
        return self.num_computed + self.stop - self.start

    def mask(self, window: int | None) -> Tensor | None:
        """[num_tokens, num_positions] to add to the scores; None: plain causal over the chunk's own tokens."""
        if window is not None and window >= self.num_positions:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window) if self.num_computed or window is not None else None
        return self._masks[window]

    def causal_mask(self, window: int | None) -> Tensor:
        """`mask`, spelled out where that is None."""
        mask = self.mask(window)
        return self._make_mask(None) if mask is None else mask

    def _make_mask(self, window: int | None) -> Tensor:
        position = torch.arange(self.num_positions, device=self.blocks.device)
        query = position[self.num_computed :, None]
        allowed = position <= query
        if window is not None:
            allowed &= position > query - window
        return additive(allowed, self.dtype)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed`, minus infinity elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


@dataclass(frozen=True)
class PagedStep:
    """Where the step's tokens are written, and what each attends to.

    The rows are in `row_order`. Tensors are on the device; what a backend decides on, it knows on the host. A backend
    that gathers keys takes `decodes` and `chunks`, which are made when first asked for; one that reads through the
    block table takes the tensors.
    """

    kv: PagedKV
    slots: Tensor
    """[T] int64: block * block_size + offset of each token."""
    table: Tensor
    """[N, M] int64: each row's blocks; what follows its last block may be any block of the cache."""
    lengths: Tensor
    """[N] int64: positions each row attends to, its new tokens included; 0 for a row that pads a batch."""
    query_starts: Tensor
    """[N + 1] int64: each row's first token in the flattened row, then T."""
    num_decodes: int
    """Rows with a single token; they come first."""
    contexts: tuple[int, ...]
    """[N], on the host: no less than `lengths`."""
    num_new: tuple[int, ...]
    """[N], on the host: each row's tokens in this step."""
    recorded: bool = False
    """Whether `lengths` will be others when this is computed again: `contexts` are bounds, not what they are now."""
    adapters: StepAdapters | None = None
    """Which tokens go through which adapter; None: none does."""

    def without_decodes(self) -> "PagedStep":
        """The rows with several tokens as a step of their own."""
        rows, count = slice(self.num_decodes, None), self.num_decodes
        return PagedStep(
            self.kv, self.slots[rows], self.table[rows], self.lengths[rows], self.query_starts[rows] - count, 0,
            self.contexts[rows], self.num_new[rows],
            adapters=None if self.adapters is None else self.adapters.part(slice(count, None)),
        )  # fmt: skip

    @cached_property
    def in_int32(self) -> tuple[Tensor, Tensor, Tensor]:
        """`table`, `lengths` and `query_starts` as int32: copies, made once a step; later changes do not show."""
        return self.table.int(), self.lengths.int(), self.query_starts.int()

    @cached_property
    def decodes(self) -> tuple[DecodeGroup, ...]:
        """The rows with a single token, those of similar context together."""
        groups: list[DecodeGroup] = []
        for start, stop in _groups(self.contexts[: self.num_decodes]):
            longest = self.contexts[start]
            num_blocks = -(-longest // self.kv.block_size)
            groups.append(
                DecodeGroup(
                    start, stop, self.table[start:stop, :num_blocks].reshape(-1), self.lengths[start:stop], longest,
                    self.recorded or self.contexts[stop - 1] < longest, self.kv.dtype,
                )
            )  # fmt: skip
        return tuple(groups)

    @cached_property
    def chunks(self) -> tuple[PrefillChunk, ...]:
        """The rows with several tokens."""
        chunks: list[PrefillChunk] = []
        token = self.num_decodes
        for row in range(self.num_decodes, len(self.contexts)):
            context, num_tokens = self.contexts[row], self.num_new[row]
            blocks = self.table[row, : -(-context // self.kv.block_size)]
            chunks.append(PrefillChunk(token, token + num_tokens, context - num_tokens, blocks, self.kv.dtype))
            token += num_tokens
        return tuple(chunks)


def row_order(num_computed: Ints, num_new: Ints) -> Ints:
    """The order in which rows enter the flattened row: decodes first, longest context first; then chunks, as given."""
    return np.where(num_new == 1, -num_computed, 1).argsort(kind="stable").astype(np.int64, copy=False)


def positions_and_slots(
    num_computed: Ints, num_new: Ints, table: Ints, block_size: int, lines: Ints | None = None
) -> tuple[Ints, Ints]:
    """Each token's position in its sequence and its slot in the cache, both [T], for N rows with these block tables.

    `lines` [N]: where in `table` each row's is; None: in order.
    """
    row = np.repeat(np.arange(len(num_new)), num_new)
    first_token = np.cumsum(num_new) - num_new
    position = np.arange(len(row)) + (num_computed - first_token)[row]
    block = table[row if lines is None else lines[row], position // block_size]
    return position, block * block_size + position % block_size


def plan_step(
    kv: PagedKV,
    num_computed: Ints,
    num_new: Ints,
    slots: Tensor,
    table: Tensor,
    lengths: Tensor,
    query_starts: Tensor,
    *,
    adapters: StepAdapters | None = None,
) -> PagedStep:
    """The plan for rows already in `row_order`: the arrays are on the host, the tensors `PagedStep`'s."""
    num_decodes = int(np.count_nonzero(num_new == 1))
    contexts = tuple((num_computed + num_new).tolist())
    return PagedStep(
        kv, slots, table, lengths, query_starts, num_decodes, contexts, tuple(num_new.tolist()), adapters=adapters
    )  # fmt: skip


def query_starts_of(num_new: Ints) -> Ints:
    """[N + 1]: where each row begins in the flattened row, then T."""
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(num_new)))


def _groups(contexts: Sequence[int]) -> list[tuple[int, int]]:
    """Spans of descending `contexts` such that padding to the first of a span at most doubles its work."""
    spans: list[tuple[int, int]] = []
    start = 0
    for row, context in enumerate(contexts):
        longest = contexts[start]
        if longest > SMALLEST_SPLIT_TOKENS and 2 * context < longest:
            spans.append((start, row))
            start = row
    if contexts:
        spans.append((start, len(contexts)))
    return spans
