"""Turns a ScheduledBatch into the flattened tensors of one step.

Everything goes up in one copy, from blocks that are made once, sized by the step's limits, and pinned when a GPU reads
them; of block tables only what changed. Knows sequences and blocks; does not know the model, nor how a token is drawn.
"""

from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from torch import Tensor

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import PENDING
from model_svc.model.paged import Ints, PagedKV, PagedStep, plan_step, positions_and_slots, query_starts_of, row_order
from model_svc.model.step_adapters import StepAdapters, step_adapters
from model_svc.runner.block_tables import NUM_ARRAYS, BlockTables
from model_svc.runner.transfer import StagingBlock
from tokenwire.errors import Internal

NUM_IN_FLIGHT = 2
"""Steps whose copies may be under way at once: one is launched before the one before it is collected."""


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step, on the device. Valid until the next but one `build`, which reuses the buffers."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    kept_tokens: Tensor
    """[S + P] int64: index into the flattened row of each token whose logits are wanted: first to sample from, then
    for prompt log-probabilities."""
    sampled_rows: list[int]
    """[S]: the row of the batch each of the former belongs to. A row with drafts occurs once more for each of them."""
    sampled_slots: Tensor
    """[S] int64: the slots of their sequences."""
    num_sampled_decodes: int
    """How many of these are rows of a single token; they come first."""
    drafts_before: list[list[int]] | None
    """[S]: the drafts that stand before the token sampled there, after the sequence's own; None: no row has drafts."""
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


class InputBatch:
    """The staging blocks and the block tables.

    `max_tokens` and `max_rows` bound a step, the latter slots too; `max_blocks` bounds a block table.
    """

    def __init__(
        self, kv: PagedKV, *, max_tokens: int, max_rows: int, max_blocks: int, num_adapter_slots: int = 0
    ) -> None:
        self.kv = kv
        self.num_adapter_slots = num_adapter_slots
        self.max_tokens, self.max_rows, self.max_blocks = max_tokens, max_rows, max_blocks
        self._tables = BlockTables(max_rows, max_blocks, kv.device)
        capacity = 6 * max_tokens + (2 * max_blocks + 8) * max_rows + 1
        self._ring = [StagingBlock(capacity, kv.device) for _ in range(NUM_IN_FLIGHT)]

    def build(self, batch: ScheduledBatch, last_tokens: Tensor) -> StepInput:
        """The step's tensors. `last_tokens` [slots] int64, on the device: what PENDING stands for, by slot.

        Raises Internal for a batch the scheduler should not have made.
        """
        self._check(batch)
        num_computed = np.array([row.start for row in batch.rows], dtype=np.int64)
        num_new = np.array([row.num_new_tokens for row in batch.rows], dtype=np.int64)
        order = row_order(num_computed, num_new)
        rows = [batch.rows[index] for index in order]
        num_computed, num_new = num_computed[order], num_new[order]

        row_slots = np.array([row.sequence.slot for row in rows], dtype=np.int64)
        table_changes = self._tables.changes(rows)
        positions, slots = positions_and_slots(
            num_computed, num_new, self._tables.on_host, self.kv.block_size, row_slots
        )  # fmt: skip
        starts = query_starts_of(num_new)
        sampled_at, sampled_tokens = sampled_positions(rows, starts)
        spans, prompt_tokens = prompt_spans(rows, order, starts)
        kept = np.concatenate((sampled_tokens, prompt_tokens))
        targets = np.array([token for span in spans for token in span.token_ids], dtype=np.int64)
        pending = [at for at, row in enumerate(rows) if row.sequence.token_ids[row.start] == PENDING]

        self._ring.reverse()
        up = iter(
            self._ring[0].upload(
                [
                    *table_changes, row_slots, new_token_ids(rows, int(num_new.sum())), positions, slots, kept, targets,
                    num_computed + num_new, starts, row_slots[sampled_at], np.array(pending, dtype=np.int64),
                    row_slots[pending],
                ]
            )
        )  # fmt: skip
        self._tables.write(*islice(up, NUM_ARRAYS))
        widest = min(max(len(row.sequence.block_table) for row in rows), self.max_blocks)
        table = self._tables.of_rows(next(up), widest)
        token_ids, positions_up, slots_up, kept_up, targets_up, lengths, starts_up, sampled_slots, pending_at, of = up
        if pending:  # each computes that token alone, and such rows come first
            token_ids.index_copy_(0, pending_at, last_tokens.index_select(0, of))
        adapters = self._adapters(rows, num_new) if self.num_adapter_slots else None
        step = plan_step(self.kv, num_computed, num_new, slots_up, table, lengths, starts_up, adapters=adapters)
        return StepInput(
            token_ids, positions_up, kept_up, order[sampled_at].tolist(), sampled_slots,
            int(np.count_nonzero(sampled_at < step.num_decodes)), drafts_before(rows) if batch.num_drafts else None,
            spans, targets_up, step,
        )  # fmt: skip

    def forget(self) -> None:
        """After a step that failed: what is kept by slot may be half written."""
        self._tables.forget()

    def _adapters(self, rows: list[ScheduledRow], num_new: Ints) -> StepAdapters | None:
        """Which tokens go through which adapter."""
        slots = np.array([row.sequence.adapter_slot for row in rows], dtype=np.int64)
        return step_adapters(np.repeat(slots, num_new), self.num_adapter_slots, self.kv.device)

    def _check(self, batch: ScheduledBatch) -> None:
        rows, block_size = batch.rows, self.kv.block_size
        if not rows or min([row.num_new_tokens for row in rows]) < 1:
            raise Internal("a step needs at least one row, and each row at least one token")
        num_tokens, num_blocks = batch.num_tokens, -(-max([row.end for row in rows]) // block_size)
        if len(rows) > self.max_rows or num_tokens > self.max_tokens or num_blocks > self.max_blocks:
            raise Internal(
                f"a step of {len(rows)} rows, {num_tokens} tokens and up to {num_blocks} blocks a row is over the "
                f"limit of {self.max_rows} rows, {self.max_tokens} tokens and {self.max_blocks} blocks"
            )
        for index, row in enumerate(rows):
            given = len(row.sequence.block_table)
            if row.end > given * block_size:
                raise Internal(f"row {index} has {given} blocks where its tokens need {-(-row.end // block_size)}")


def new_token_ids(rows: list[ScheduledRow], num_tokens: int) -> Ints:
    """[T]: the rows' tokens to compute, one row after the other."""
    return np.fromiter(chain.from_iterable(row.new_token_ids for row in rows), dtype=np.int64, count=num_tokens)


def sampled_positions(rows: list[ScheduledRow], starts: Ints) -> tuple[Ints, Ints]:
    """Where tokens are sampled, both [S]: the index among `rows`, and the token of the flattened row.

    In a row that samples these are its last own token and its drafts.
    """
    counts = np.array([1 + len(row.drafts) if row.samples else 0 for row in rows], dtype=np.int64)
    before = np.cumsum(counts) - counts
    return np.repeat(np.arange(len(rows)), counts), np.arange(int(counts.sum())) + np.repeat(
        starts[1:] - counts - before, counts
    )  # fmt: skip


def drafts_before(rows: list[ScheduledRow]) -> list[list[int]]:
    """[S]: the drafts of its row that stand before each token sampled."""
    return [row.drafts[:num] for row in rows if row.samples for num in range(1 + len(row.drafts))]


def prompt_spans(rows: list[ScheduledRow], order: Ints, starts: Ints) -> tuple[list[PromptSpan], Ints]:
    """What prompt log-probabilities the rows give, and the tokens [P] of the flattened row whose logits give them."""
    spans: list[PromptSpan] = []
    tokens: list[Ints] = [np.empty(0, dtype=np.int64)]
    for row, index, start in zip(rows, order.tolist(), starts.tolist(), strict=False):
        positions = row.prompt_logprob_positions
        if positions:
            token_ids = row.sequence.token_ids[positions.start + 1 : positions.stop + 1]
            spans.append(PromptSpan(index, token_ids, row.sequence.prompt_logprobs or 0))
            tokens.append(np.arange(positions.start, positions.stop) - row.start + start)
    return spans, np.concatenate(tokens)
