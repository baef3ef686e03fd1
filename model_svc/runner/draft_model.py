"""A second, smaller model that drafts what follows: its own paged cache, in blocks with the same ids as the target's.

A sequence's block table holds for both models, so blocks are given and taken back once; but what another sequence left
in a shared block is not relied on: the draft model computes each sequence's tokens itself, from the first. It draws
with the sequence's own sampling and, at every position, with the same uniform number as the target will: where the two
models' distributions are alike, so are the tokens. Knows sequences and a runner. Does not know what drafts are worth.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from model_svc.engine.batch import ModelRunner, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.sequence import Sequence


@dataclass(slots=True)
class Followed:
    """A target's sequence as the draft model has it."""

    own: Sequence
    """Its tokens may end with drafts; `num_computed_tokens` are those in the draft model's cache."""
    num_known: int
    """How many of its tokens were the target's when it was last looked at."""
    num_preemptions: int
    """The target's then: another number means other blocks."""


class DraftModel:
    """See `model_svc.engine.batch.DraftModel`. `runner` is the draft model's, over as many blocks as the target's.

    `vocab_size` is the target's: tokens beyond it are not proposed.
    """

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._followed: dict[int, Followed] = {}

    def most(self, sequence: Sequence) -> int:
        """How many tokens may be proposed for a sequence: its context and vocabulary are the draft model's too."""
        own = self._runner.info
        if own.vocab_size < self._vocab_size and max(sequence.token_ids) >= own.vocab_size:
            return 0  # padding of the target's embeddings, which no tokenizer gives
        return max(0, own.max_context_tokens - len(sequence.token_ids))

    def num_behind(self, sequence: Sequence) -> int:
        """Tokens of the sequence that are to be computed before one can be proposed; 1 at least."""
        return len(sequence.token_ids) - self._follow(sequence).num_computed_tokens

    def propose(self, wanted: Rows[tuple[Sequence, int]]) -> list[list[int]]:
        """Up to so many tokens that may follow each sequence's, all known, whose blocks hold them already.

        Nothing for one that is too far behind to be caught up with in a step; it is brought nearer. Raises OutOfMemory.
        """
        budget, drafts = self._runner.info.max_step_tokens, [list[int]() for _ in wanted]
        rows: list[tuple[int, ScheduledRow]] = []
        for index, (sequence, _) in enumerate(wanted):
            own = self._follow(sequence)
            chunk = min(own.num_uncomputed_tokens, budget)
            budget -= chunk
            if chunk:
                rows.append((index, ScheduledRow(own, chunk)))
        while rows:
            output = run_step(self._runner, ScheduledBatch(tuple(row for _, row in rows)))
            going_on: list[tuple[int, ScheduledRow]] = []
            for (index, row), token_id in zip(rows, output.token_ids, strict=True):
                row.sequence.num_computed_tokens = row.end
                if token_id is None or token_id >= self._vocab_size:
                    continue
                drafts[index].append(token_id)
                row.sequence.token_ids.append(token_id)
                if len(drafts[index]) < wanted[index][1]:
                    going_on.append((index, ScheduledRow(row.sequence, 1)))
            rows = going_on
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        self._followed.pop(sequence.sequence_id, None)

    def close(self) -> None:
        """Give the device back."""
        self._followed.clear()
        self._runner.close()

    def _follow(self, sequence: Sequence) -> Sequence:
        """The draft model's view of a sequence, brought up to date."""
        followed = self._followed.get(sequence.sequence_id)
        if followed is None:
            own = Sequence(
                sequence_id=sequence.sequence_id, token_ids=list(sequence.token_ids),
                num_prompt_tokens=sequence.num_prompt_tokens, sampling=sequence.sampling, stop=sequence.stop,
                choice=sequence.choice, num_generated_before=sequence.num_generated_before,
            )  # fmt: skip
            followed = Followed(own, len(own.token_ids), sequence.num_preemptions)
            self._followed[sequence.sequence_id] = followed
        own, token_ids = followed.own, sequence.token_ids
        num_equal = followed.num_known
        while num_equal < min(len(own.token_ids), len(token_ids)) and own.token_ids[num_equal] == token_ids[num_equal]:
            num_equal += 1
        own.token_ids[num_equal:] = token_ids[num_equal:]
        own.num_computed_tokens = min(own.num_computed_tokens, num_equal, len(token_ids) - 1)
        if followed.num_preemptions != sequence.num_preemptions:
            own.num_computed_tokens = 0
        followed.num_known, followed.num_preemptions = len(token_ids), sequence.num_preemptions
        own.block_table, own.slot = sequence.block_table, sequence.slot
        return own
