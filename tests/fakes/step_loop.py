"""The least of a scheduler: enough to drive a runner through prefill chunks and decodes."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from model_svc.engine.batch import ModelRunner, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.sequence import Sequence
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

GREEDY = replace(NEUTRAL, seed=0)
SEQUENCE_IDS = count(1)
"""Loops may share a runner, which takes equal ids for one sequence."""


class StepLoop:
    """Runs every sequence it holds in each step, `chunk` tokens at most of each; blocks come in random order."""

    def __init__(self, runner: ModelRunner, *, chunk: int = 10**9) -> None:
        self.runner = runner
        self.chunk = chunk
        self.free = list(range(runner.info.num_blocks))
        random.Random(0).shuffle(self.free)
        self.running: list[Sequence] = []
        self.drafts: dict[int, list[int]] = {}
        """By sequence_id: what the next step verifies of a sequence; one token of it at most is kept."""
        self.errors: dict[int, str] = {}
        self.logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
        self.prompt_logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingParams = GREEDY,
        *,
        before: int = 0,
        stop_token_ids: tuple[int, ...] = (),
        min_tokens: int = 0,
        **fields: Any,
    ) -> Sequence:
        """Start a sequence in the next step; `fields` are more of Sequence's."""
        sequence = Sequence(
            sequence_id=next(SEQUENCE_IDS),
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            sampling=sampling,
            stop=StopParams(max_tokens=max_tokens, stop_token_ids=stop_token_ids, min_tokens=min_tokens),
            num_generated_before=before,
            **fields,
        )
        self.running.append(sequence)
        return sequence

    def step(self) -> None:
        """Run one batch and take in what it gave."""
        rows: list[ScheduledRow] = []
        for sequence in self.running:
            if sequence.slot < 0:
                taken = {other.slot for other in self.running}
                sequence.slot = next(slot for slot in count() if slot not in taken)
            num_new = min(self.chunk, sequence.num_uncomputed_tokens)
            drafts = self.drafts.pop(sequence.sequence_id, [])
            needed = -(-(sequence.num_computed_tokens + num_new + len(drafts)) // self.runner.info.block_size)
            while len(sequence.block_table) < needed:
                sequence.block_table.append(self.free.pop())
            rows.append(ScheduledRow(sequence, num_new, drafts))
        output = run_step(self.runner, ScheduledBatch(tuple(rows)))
        assert len(output.token_ids) == len(rows)
        sampled = [row.samples for row in rows]
        for index, row in enumerate(rows):
            token_id = output.token_ids[index]
            assert (token_id is not None) == (sampled[index] and index not in output.errors)
            sequence = row.sequence
            sequence.num_computed_tokens = row.own_end
            given = output.prompt_logprobs.get(index, [])
            self.prompt_logprobs[sequence.sequence_id] += given
            sequence.num_prompt_logprobs += len(given)
            assert (index in output.logprobs) == (token_id is not None and sequence.logprobs is not None)
            if token_id is not None:
                sequence.token_ids.append(token_id)
            if index in output.logprobs:
                self.logprobs[sequence.sequence_id].append(output.logprobs[index])
            if index in output.errors and row.drafts:
                sequence.num_computed_tokens = row.start
            elif index in output.errors:
                self.errors[sequence.sequence_id] = output.errors[index].message
                self.release(sequence)
            elif sequence.num_new_outputs == sequence.stop.max_tokens or token_id in sequence.stop.stop_token_ids:
                self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out; its blocks are the next to be handed out."""
        self.running.remove(sequence)
        sequence.slot = -1
        self.free.extend(sequence.block_table)

    def preempt(self, sequence: Sequence) -> None:
        """Give its blocks and slot back and compute it again from the start, in other blocks."""
        self.free[:0] = sequence.block_table
        sequence.block_table = []
        sequence.slot = -1
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
