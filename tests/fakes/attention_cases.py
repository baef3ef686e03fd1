"""Random steps of mixed rows over a paged cache, for comparing one attention backend with another."""

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from model_svc.model.attention import AttentionBackend, AttentionOptions
from model_svc.model.paged import (
    LayerKV,
    LayerKVSpec,
    PagedStep,
    allocate,
    plan_step,
    positions_and_slots,
    query_starts_of,
    row_order,
)


@dataclass(frozen=True)
class Case:
    """One layer's attention, and the step it is computed in: a pair of (computed, new) tokens for each row."""

    rows: tuple[tuple[int, int], ...]
    num_kv_heads: int = 2
    group: int = 2
    key_size: int = 16
    value_size: int = 16
    block_size: int = 4
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    seed: int = 0

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group


@dataclass(frozen=True)
class Prepared:
    """A case's tensors. Queries lie as projections leave them, [T, heads, size], seen as [1, heads, T, size]."""

    query: Tensor
    key: Tensor
    value: Tensor
    layer: LayerKV
    step: PagedStep
    options: AttentionOptions

    def attend(self, backend: AttentionBackend) -> Tensor:
        """[T, heads, value_size]."""
        return backend.attend(self.query, self.key, self.value, self.layer, self.step, self.options)[0]

    def spoiled(self) -> "Prepared":
        """The same, with NaN in every slot that no row of the step has filled."""
        unused = torch.ones(len(self.layer.key_slots), dtype=torch.bool, device=self.query.device)
        unused[self.filled_slots()] = False
        key, value = self.layer.key.clone(), self.layer.value.clone()
        layer = LayerKV(key, value, key.flatten(0, 1), value.flatten(0, 1))
        layer.key_slots[unused] = torch.nan
        layer.value_slots[unused] = torch.nan
        return replace(self, layer=layer)

    def filled_slots(self) -> Tensor:
        position = torch.arange(self.step.table.shape[1] * self.step.kv.block_size, device=self.step.table.device)
        slots = self.step.table[:, position // self.step.kv.block_size] * self.step.kv.block_size
        return (slots + position % self.step.kv.block_size)[position < self.step.lengths[:, None]]


def prepare(case: Case, device: torch.device, dtype: torch.dtype) -> Prepared:
    """The case's tensors on `device`, the same numbers everywhere."""
    computed, new = (np.array(column, dtype=np.int64) for column in zip(*case.rows, strict=True))
    order = row_order(computed, new)
    computed, new = computed[order], new[order]
    num_blocks = -(-(computed + new) // case.block_size)
    blocks = np.random.default_rng(case.seed).permutation(int(num_blocks.sum())) + 1  # block 0 is nobody's
    table = np.zeros((len(new), int(num_blocks.max())), dtype=np.int64)
    table[np.arange(table.shape[1]) < num_blocks[:, None]] = blocks
    generator = torch.Generator().manual_seed(case.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    spec = LayerKVSpec(case.num_kv_heads, case.key_size, case.value_size)
    kv = allocate([spec], len(blocks) + 1, case.block_size, dtype, device)
    layer = kv.layers[0]
    layer.key.copy_(random(*layer.key.shape))
    layer.value.copy_(random(*layer.value.shape))
    _, slots = positions_and_slots(computed, new, table, case.block_size)
    step = plan_step(
        kv, computed, new, on_device(slots), on_device(table), on_device(computed + new),
        on_device(query_starts_of(new)),
    )  # fmt: skip
    query = random(int(new.sum()), case.num_heads, case.key_size).transpose(0, 1)[None]
    key, value = (
        cache.index_select(0, step.slots).transpose(0, 1)[None] for cache in (layer.key_slots, layer.value_slots)
    )
    sinks = random(case.num_heads) if case.sinks else None
    return Prepared(query, key, value, layer, step, AttentionOptions(case.scale, case.window, case.softcap, sinks))


def mixed_cases(num_cases: int, *, longest: int) -> list[Case]:
    """Cases of decodes and chunks with contexts up to `longest`; every value of each feature occurs in some."""
    random = Random(0)
    sizes, groups, block_sizes = (8, 12, 64, 80), (1, 2, 4, 8, 3), (1, 4, 16)
    windows, softcaps, scales = (None, 7, None, 50, 1), (None, None, 1.5, 30.0), (None, 0.3)
    cases: list[Case] = []
    for number in range(num_cases):
        rows = [(random.randrange(longest), 1) for _ in range(number % 4)]
        for _ in range(number % 3 + (number % 4 == 0)):
            context = random.randint(2, longest)
            num_new = random.randint(2, min(context, 40))
            rows.append((context - num_new, num_new) if number % 2 else (0, num_new))
        rows[0] = (longest - rows[0][1], rows[0][1])
        random.shuffle(rows)
        cases.append(
            Case(
                tuple(rows), num_kv_heads=1 + number // 2 % 2, group=groups[number % 5], key_size=sizes[number % 4],
                value_size=sizes[number * 3 // 4 % 4], block_size=block_sizes[number % 3],
                scale=scales[number % 2], window=windows[number % 5], softcap=softcaps[number // 2 % 4],
                sinks=number % 3 == 1, seed=number,
            )
        )  # fmt: skip
    return cases
