"""A ScheduledBatch as what changed since the last one, and back: what the leading rank tells the others each step.

A sequence travels whole when it was not part of the last step, else with its new tokens, its new blocks and the few
numbers that move; so a message grows with what a step does, not with contexts. Knows neither ranks nor devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import Sequence

MOVING = ("num_computed_tokens", "num_prompt_logprobs", "slot", "adapter_slot")
"""Fields that the scheduler changes and the runner reads, besides the two lists `token_ids` and `block_table`."""
CONSTANT = (
    "sequence_id", "num_prompt_tokens", "sampling", "stop", "choice", "num_generated_before", "logprobs",
    "prompt_logprobs", "constraint", "embedding", "adapter",
)  # fmt: skip
"""Fields that the runner reads and nobody changes."""
UNREAD = (
    "priority", "tenant", "arrival_s", "deadline_s", "first_choice_id", "cache_root", "status", "num_cached_tokens",
    "block_hashes", "num_stored_blocks", "awaited_hash", "first_scheduled_s", "first_token_s", "num_preemptions",
    "speculation", "vector",
)  # fmt: skip
"""Fields that are the scheduler's alone; in a mirrored sequence they may be out of date."""

moving_values = attrgetter(*MOVING)


@dataclass(frozen=True, slots=True)
class Continued:
    """A sequence that was part of the last step."""

    sequence_id: int
    token_ids: list[int]
    """To append."""
    num_kept_blocks: int
    blocks: list[int]
    """The block table after its first `num_kept_blocks`."""
    moving: tuple[int, ...]
    """Values of `MOVING`."""


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """One step: its rows' sequences, how many of each one's own tokens are computed, and the drafts after them."""

    sequences: list[Sequence | Continued]
    num_own_tokens: list[int]
    drafts: list[list[int]]


class BatchEncoder:
    """The leader's side. Remembers what the others know: the sequences of the last step."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, list[int]]] = {}
        """By sequence id: how many of its tokens were told, and its block table."""

    def encode(self, batch: ScheduledBatch) -> BatchMessage:
        """The batch in terms of the last one encoded. Pickle it before the sequences change."""
        known, self._known = self._known, {}
        message = BatchMessage(
            [], [row.num_own_tokens for row in batch.rows], [row.drafts for row in batch.rows]
        )  # fmt: skip
        for row in batch.rows:
            sequence = row.sequence
            message.sequences.append(self._told(sequence, known.get(sequence.sequence_id)))
            self._known[sequence.sequence_id] = (len(sequence.token_ids), list(sequence.block_table))
        return message

    @staticmethod
    def _told(sequence: Sequence, known: tuple[int, list[int]] | None) -> Sequence | Continued:
        if known is None or known[0] > len(sequence.token_ids):
            return sequence
        num_tokens, table = known
        kept = len(table) if sequence.block_table[: len(table)] == table else 0
        return Continued(
            sequence.sequence_id, sequence.token_ids[num_tokens:], kept, sequence.block_table[kept:],
            moving_values(sequence),
        )  # fmt: skip


class BatchDecoder:
    """A follower's side: its own copies of the last step's sequences."""

    def __init__(self) -> None:
        self._sequences: dict[int, Sequence] = {}

    def decode(self, message: BatchMessage) -> ScheduledBatch:
        """The batch, equal to the leader's in all that a runner reads."""
        sequences = list(self._followed(message))
        self._sequences = {sequence.sequence_id: sequence for sequence in sequences}
        return ScheduledBatch(tuple(map(ScheduledRow, sequences, message.num_own_tokens, message.drafts)))

    def _followed(self, message: BatchMessage) -> Iterator[Sequence]:
        for told in message.sequences:
            if isinstance(told, Sequence):
                yield told
                continue
            sequence = self._sequences[told.sequence_id]
            sequence.token_ids += told.token_ids
            sequence.block_table[told.num_kept_blocks :] = told.blocks
            for name, value in zip(MOVING, told.moving, strict=True):
                setattr(sequence, name, value)
            yield sequence
