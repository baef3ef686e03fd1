"""Makes embeddings of a step's hidden states: sums over positions, kept by slot while a prompt comes in chunks.

Sums are float32 whatever the model computes in. A mean is the sum over every position of the sequence, so a row that
begins at position 0 starts it anew; of the others one position counts. Cutting and scaling are done on the host, once a
sequence is whole. Knows rows and their slots; does not know how hidden states are computed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import Sequence
from model_svc.model.paged import Ints, row_order
from model_svc.model.upload import together
from model_svc.runner.transfer import HostCopies
from tokenwire.embeddings import EmbeddingOptions, Pooling, Vector
from tokenwire.errors import Internal, TokenwireError

Floats = NDArray[np.float32]

NOT_FINITE_ERROR = "the model's hidden states are not finite (NaN or infinity), so no embedding can be made of them"
SHORTEST = 1e-12
"""A vector is divided by its length, or by this where it is shorter (as torch's `normalize`)."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The part of a step that is embedded: K rows, E of whose tokens count."""

    rows: list[int]
    """[K]: their places in the batch."""
    slots: Ints
    """[K]: of their sequences."""
    goes_on: Ints
    """[K]: 1 for a row that adds to what chunks before it gave, else 0."""
    tokens: Ints
    """[E]: the tokens that count, in the flattened row, those of one row together."""
    counts: Ints
    """[K]: how many are each row's."""
    completes: list[int]
    """Of the K rows those that reach the end of their sequence."""
    has_single: bool
    """Whether one of the rows has a single token, and so is among the step's decodes."""


@dataclass(frozen=True, slots=True)
class LaunchedVectors:
    """Sums of sequences that became whole, on their way to the host."""

    rows: list[int]
    """Of the batch."""
    sequences: list[Sequence]
    num_tokens: list[int]
    """Of each, when it was launched."""
    copies: HostCopies
    """[C, hidden_size] float32."""

    def take(self) -> tuple[dict[int, Vector], dict[int, TokenwireError]]:
        """Waits. The vectors, by row, and the error of each whose numbers are none."""
        (sums,) = self.copies.wait()
        vectors: dict[int, Vector] = {}
        errors: dict[int, TokenwireError] = {}
        found = zip(self.rows, self.sequences, self.num_tokens, sums.numpy(), strict=True)
        for row, sequence, num_tokens, total in found:
            assert sequence.embedding is not None, "planned for such sequences alone"
            vector = shaped(total, num_tokens, sequence.embedding)
            if np.isfinite(vector).all():
                vectors[row] = vector.tobytes()
            else:
                errors[row] = Internal(NOT_FINITE_ERROR, reason="SEQUENCE_FAILED")
        return vectors, errors


class Pooler:
    """Keeps sums by slot; slots are below `num_slots`. The memory is taken with the first embedding."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._num_slots = num_slots
        self._device = device
        self._sums: Tensor | None = None
        """[num_slots, hidden_size] float32: of whoever has the slot."""

    @staticmethod
    def plan(batch: ScheduledBatch, order: Ints | None = None) -> PoolPlan | None:
        """What of a step is embedded; None: nothing. `order`: of the rows in the flattened row; None: `row_order`'s."""
        embedded = [index for index, row in enumerate(batch.rows) if row.sequence.embedding is not None]
        if not embedded:
            return None
        num_new = np.array([row.num_new_tokens for row in batch.rows], dtype=np.int64)
        if order is None:
            order = row_order(np.array([row.start for row in batch.rows], dtype=np.int64), num_new)
        first_token = np.empty(len(order), dtype=np.int64)
        first_token[order] = np.cumsum(num_new[order]) - num_new[order]
        rows = [batch.rows[index] for index in embedded]
        spans = [counted(row) for row in rows]
        tokens = [first_token[i] + np.arange(s.start, s.stop) for i, s in zip(embedded, spans, strict=True)]
        return PoolPlan(
            rows=embedded,
            slots=np.array([row.sequence.slot for row in rows], dtype=np.int64),
            goes_on=np.array([goes_on(row) for row in rows], dtype=np.int64),
            tokens=np.concatenate(tokens),
            counts=np.array([len(span) for span in spans], dtype=np.int64),
            completes=[at for at, row in enumerate(rows) if row.end == row.sequence.num_tokens],
            has_single=any(row.num_new_tokens == 1 for row in rows),
        )

    def pool(self, hidden: Tensor, batch: ScheduledBatch, plan: PoolPlan, first_token: int = 0) -> LaunchedVectors:
        """Add a step's hidden states [T, hidden_size]; `first_token` of the flattened row is their first.

        A row whose sequence had another slot before starts anew, for such a sequence is computed from its beginning.
        """
        if self._sums is None:
            self._sums = torch.zeros(self._num_slots, hidden.shape[-1], dtype=torch.float32, device=self._device)
        arrays = [plan.tokens - first_token, plan.counts, plan.slots, plan.goes_on, np.array(plan.completes, np.int64)]
        tokens, counts, slots, keeps, done = together(arrays, self._device)
        added = torch.segment_reduce(  # unsafe: unless told so it reads the counts to see whether they fit, and waits
            hidden.index_select(0, tokens).float(), "sum", lengths=counts, axis=0, initial=0.0, unsafe=True
        )  # fmt: skip
        before = self._sums.index_select(0, slots)
        sums = torch.where(keeps[:, None] > 0, before + added, added)
        self._sums.index_copy_(0, slots, sums)
        sequences = [batch.rows[plan.rows[at]].sequence for at in plan.completes]
        return LaunchedVectors(
            rows=[plan.rows[at] for at in plan.completes],
            sequences=sequences,
            num_tokens=[sequence.num_tokens for sequence in sequences],
            copies=HostCopies((sums.index_select(0, done),), self._device),
        )


def counted(row: ScheduledRow) -> range:
    """The tokens of a row that count, its first being 0."""
    pooling = row.sequence.embedding.pooling if row.sequence.embedding is not None else None
    if pooling is Pooling.MEAN:
        return range(row.num_new_tokens)
    if pooling is Pooling.CLS:
        return range(1 if row.start == 0 else 0)
    is_last = row.end == row.sequence.num_tokens
    return range(row.num_new_tokens - is_last, row.num_new_tokens)


def goes_on(row: ScheduledRow) -> bool:
    """Whether chunks before this one gave something that counts."""
    return row.start > 0 and row.sequence.embedding is not None and row.sequence.embedding.pooling is not Pooling.LAST


def shaped(total: Floats, num_tokens: int, options: EmbeddingOptions) -> Floats:
    """The vector of a sequence: `total` [hidden_size] float32, the sum of what counts, averaged, cut and scaled."""
    vector: Floats = total / np.float32(num_tokens) if options.pooling is Pooling.MEAN else total
    vector = vector[: options.dimensions]
    if not options.normalize:
        return vector
    length = np.sqrt(np.sum(np.square(vector, dtype=np.float64)))
    scaled: Floats = (vector / max(length, SHORTEST)).astype(np.float32)
    return scaled
