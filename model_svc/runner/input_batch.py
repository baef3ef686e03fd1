"""Turns a ScheduledBatch into the flattened tensors of one step.

The host buffers are made once, sized by the step's limits, and pinned when a GPU reads them; each step fills their
fronts with whole-array operations. Knows sequences and blocks; does not know the model, nor how a token is drawn.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.model.paged import Ints, PagedKV, PagedStep, plan_step, positions_and_slots, query_starts_of, row_order
from tokenwire.errors import Internal


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step, on the device. Valid until the next `build`, which reuses the buffers."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    kept_tokens: Tensor
    """[S + P] int64: index into the flattened row of each token whose logits are wanted: first to sample from, then
    for prompt log-probabilities."""
    sampled_rows: list[int]
    """[S]: the row of the batch each of the former belongs to."""
    prompt_spans: list["PromptSpan"]
    """The latter, row by row; P positions in all."""
    prompt_targets: Tensor
    """[P] int64: the prompt's token that follows each of them."""
    step: PagedStep


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Prompt log-probabilities that one row gives."""

    row: int
    """Of the batch."""
    token_ids: list[int]
    """The prompt's tokens they are of."""
    num_top: int
    """Likeliest tokens wanted beside each."""


class HostBuffer:
    """An int64 tensor on the host, and the array over the same memory that fills it."""

    def __init__(self, *shape: int, device: torch.device) -> None:
        self.device = device
        self.tensor = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.array: Ints = self.tensor.numpy()

    def front(self, length: int) -> Tensor:
        """The first `length` entries on the device: a copy in flight for a GPU, the buffer itself on a CPU."""
        return self.tensor[:length].to(self.device, non_blocking=True)


class InputBatch:
    """The static buffers. `max_tokens` and `max_rows` bound a step; `max_blocks` bounds a block table."""

    def __init__(self, kv: PagedKV, *, max_tokens: int, max_rows: int, max_blocks: int) -> None:
        self.kv = kv
        self.max_tokens, self.max_rows, self.max_blocks = max_tokens, max_rows, max_blocks
        self._token_ids = HostBuffer(max_tokens, device=kv.device)
        self._positions = HostBuffer(max_tokens, device=kv.device)
        self._slots = HostBuffer(max_tokens, device=kv.device)
        self._kept = HostBuffer(max_tokens, device=kv.device)
        self._targets = HostBuffer(max_tokens, device=kv.device)
        self._lengths = HostBuffer(max_rows, device=kv.device)
        self._query_starts = HostBuffer(max_rows + 1, device=kv.device)
        self._table = HostBuffer(max_rows, max_blocks, device=kv.device)

    def build(self, batch: ScheduledBatch) -> StepInput:
        """The step's tensors. Raises Internal for a batch the scheduler should not have made."""
        num_computed = np.array([row.sequence.num_computed_tokens for row in batch.rows], dtype=np.int64)
        num_new = np.array([row.num_new_tokens for row in batch.rows], dtype=np.int64)
        self._check(batch, num_computed, num_new)
        order = row_order(num_computed, num_new)
        rows = [batch.rows[index] for index in order]
        num_computed, num_new = num_computed[order], num_new[order]
        num_rows, num_tokens = len(rows), int(num_new.sum())

        table = self._fill_table(rows)
        positions, slots = positions_and_slots(num_computed, num_new, table, self.kv.block_size)
        self._positions.array[:num_tokens] = positions
        self._slots.array[:num_tokens] = slots
        self._lengths.array[:num_rows] = num_computed + num_new
        self._token_ids.array[:num_tokens] = new_token_ids(rows, num_tokens)

        samples = np.array([row.samples for row in rows], dtype=bool)
        num_sampled = int(np.count_nonzero(samples))
        starts = query_starts_of(num_new)
        self._query_starts.array[: num_rows + 1] = starts
        ends = starts[1:]
        self._kept.array[:num_sampled] = (ends - 1)[samples]
        spans = self._keep_prompt(rows, order, starts[:-1], num_sampled)
        num_prompt = sum(len(span.token_ids) for span in spans)
        step = plan_step(
            self.kv, num_computed, num_new, self._slots.front(num_tokens),
            self._table.front(num_rows)[:, : table.shape[1]], self._lengths.front(num_rows),
            self._query_starts.front(num_rows + 1),
        )  # fmt: skip
        return StepInput(
            self._token_ids.front(num_tokens),
            self._positions.front(num_tokens),
            self._kept.front(num_sampled + num_prompt),
            order[samples].tolist(),
            spans,
            self._targets.front(num_prompt),
            step,
        )

    def _check(self, batch: ScheduledBatch, num_computed: Ints, num_new: Ints) -> None:
        num_blocks = -(-(num_computed + num_new) // self.kv.block_size)
        given = np.array([len(row.sequence.block_table) for row in batch.rows], dtype=np.int64)
        if not batch.rows or num_new.min() < 1:
            raise Internal("a step needs at least one row, and each row at least one token")
        if len(batch.rows) > self.max_rows or num_new.sum() > self.max_tokens or num_blocks.max() > self.max_blocks:
            raise Internal(
                f"a step of {len(batch.rows)} rows, {num_new.sum()} tokens and up to {num_blocks.max()} blocks a "
                f"row is over the limit of {self.max_rows} rows, {self.max_tokens} tokens and {self.max_blocks} blocks"
            )
        if (given < num_blocks).any():
            row = int(np.argmax(given < num_blocks))
            raise Internal(f"row {row} has {given[row]} blocks where its tokens need {num_blocks[row]}")

    def _keep_prompt(
        self, rows: list[ScheduledRow], order: Ints, first_tokens: Ints, num_kept: int
    ) -> list[PromptSpan]:
        """Keep the tokens whose logits give prompt log-probabilities, after the first `num_kept`."""
        spans: list[PromptSpan] = []
        num_targets = 0
        for row, index, first_token in zip(rows, order.tolist(), first_tokens.tolist(), strict=True):
            positions = row.prompt_logprob_positions
            if positions:
                sequence = row.sequence
                token_ids = sequence.token_ids[positions.start + 1 : positions.stop + 1]
                tokens = np.array(positions) - sequence.num_computed_tokens + first_token
                end = num_targets + len(tokens)
                self._kept.array[num_kept + num_targets : num_kept + end] = tokens
                self._targets.array[num_targets:end] = token_ids
                spans.append(PromptSpan(index, token_ids, sequence.prompt_logprobs or 0))
                num_targets = end
        return spans

    def _fill_table(self, rows: list[ScheduledRow]) -> Ints:
        """Block tables [N, M], a shorter one padded with its own first block; M is the longest table's length."""
        lengths = np.array([len(row.sequence.block_table) for row in rows], dtype=np.int64)
        widest = min(int(lengths.max()), self.max_blocks)
        table = self._table.array[: len(rows), :widest]
        table[:] = np.array([row.sequence.block_table[0] for row in rows], dtype=np.int64)[:, None]
        used = np.minimum(lengths, widest)
        blocks = chain.from_iterable(row.sequence.block_table[:widest] for row in rows)
        table[np.arange(widest) < used[:, None]] = np.fromiter(blocks, dtype=np.int64, count=int(used.sum()))
        return table


def new_token_ids(rows: list[ScheduledRow], num_tokens: int) -> Ints:
    """[T]: the rows' tokens to compute, one row after the other."""
    spans = (
        row.sequence.token_ids[row.sequence.num_computed_tokens : row.sequence.num_computed_tokens + row.num_new_tokens]
        for row in rows
    )
    return np.fromiter(chain.from_iterable(spans), dtype=np.int64, count=num_tokens)
