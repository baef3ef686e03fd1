"""The least of a scheduler: enough to drive a runner through prefill chunks and decodes."""

import random
from collections.abc import Callable
from dataclasses import replace

from model_svc.engine.batch import ModelRunner, ScheduledBatch, ScheduledRow
from model_svc.engine.sequence import Sequence
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

GREEDY = replace(NEUTRAL, seed=0)


class StepLoop:
    """Runs every sequence it holds in each step, `chunk` tokens at most of each; blocks come in random order."""

    def __init__(self, runner: ModelRunner, *, chunk: int = 10**9) -> None:
        self.runner = runner
        self.chunk = chunk
        self.free = list(range(runner.info.num_blocks))
        random.Random(0).shuffle(self.free)
        self.running: list[Sequence] = []
        self.errors: dict[int, str] = {}
        self.num_added = 0

    def add(
        self, prompt: list[int], max_tokens: int, sampling: SamplingParams = GREEDY, *, choice: int = 0, before: int = 0
    ) -> Sequence:
        """Start a sequence in the next step."""
        sequence = Sequence(
            sequence_id=self.num_added,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            sampling=sampling,
            stop=StopParams(max_tokens=max_tokens),
            choice=choice,
            num_generated_before=before,
        )
        self.num_added += 1
        self.running.append(sequence)
        return sequence

    def step(self) -> None:
        """Run one batch and take in what it gave."""
        rows: list[ScheduledRow] = []
        for sequence in self.running:
            num_new = min(self.chunk, sequence.num_uncomputed_tokens)
            needed = -(-(sequence.num_computed_tokens + num_new) // self.runner.info.block_size)
            while len(sequence.block_table) < needed:
                sequence.block_table.append(self.free.pop())
            rows.append(ScheduledRow(sequence, num_new))
        output = self.runner.run(ScheduledBatch(tuple(rows)))
        assert len(output.token_ids) == len(rows)
        sampled = [row.samples for row in rows]
        for index, row in enumerate(rows):
            token_id = output.token_ids[index]
            assert (token_id is not None) == (sampled[index] and index not in output.errors)
            row.sequence.num_computed_tokens += row.num_new_tokens
            if token_id is not None:
                row.sequence.token_ids.append(token_id)
            if index in output.errors:
                self.errors[row.sequence.sequence_id] = output.errors[index]
                self.release(row.sequence)
            elif row.sequence.num_new_outputs == row.sequence.stop.max_tokens:
                self.release(row.sequence)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out; its blocks are the next to be handed out."""
        self.running.remove(sequence)
        self.free.extend(sequence.block_table)

    def preempt(self, sequence: Sequence) -> None:
        """Give its blocks back and compute it again from the start, in other blocks."""
        self.free[:0] = sequence.block_table
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def run(self, before_step: Callable[[int], None] = lambda _: None) -> None:
        """Step until nothing runs; `before_step` gets the step's number."""
        number = 0
        while self.running:
            before_step(number)
            self.step()
            number += 1


def outputs(sequence: Sequence) -> list[int]:
    """The tokens made for it."""
    return sequence.token_ids[sequence.num_prompt_tokens :]
