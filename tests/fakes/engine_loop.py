"""The real engine over a runner, stepped by hand, with every sequence and every end kept for a test to look at."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import count, takewhile
from typing import Any

from model_svc.engine.batch import ModelRunner, RunnerInfo, ScheduledBatch, StepOutput
from model_svc.engine.drafting import DraftLimits
from model_svc.engine.engine import Engine
from model_svc.engine.events import Inbox
from model_svc.engine.limits import Limits
from model_svc.engine.sequence import Sequence
from tests.fakes.step_loop import GREEDY
from tokenwire.requests import Terminal, TokenLogprob
from tokenwire.sampling import StopParams

SEQUENCE_IDS = count(10**6)
"""A runner takes equal ids for one sequence, and other loops may have used it."""

NO_DRAFTS = DraftLimits()


class RecordingRunner:
    """Keeps the log-probabilities that a runner gives out, by sequence id. `info` may differ from the runner's own."""

    def __init__(self, runner: ModelRunner, info: RunnerInfo) -> None:
        self.runner, self.info, self.phases = runner, info, runner.phases
        self.grammars, self.adapters, self.draft_model = runner.grammars, runner.adapters, runner.draft_model
        self.logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
        self.prompt_logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)

    def launch(self, batch: ScheduledBatch) -> Any:
        return batch, self.runner.launch(batch)

    def collect(self, launched: Any) -> StepOutput:
        batch, token = launched
        output = self.runner.collect(token)
        for row, logprob in output.logprobs.items():
            self.logprobs[batch.rows[row].sequence.sequence_id].append(logprob)
        for row, after in output.after_drafts.items():
            sequence = batch.rows[row].sequence
            equal = takewhile(
                lambda pair: pair[0] == pair[1],
                zip([output.token_ids[row], *after.token_ids], batch.rows[row].drafts, strict=False),
            )
            self.logprobs[sequence.sequence_id] += [entry for entry, _ in zip(after.logprobs, equal, strict=False)]
        for row, logprobs in output.prompt_logprobs.items():
            self.prompt_logprobs[batch.rows[row].sequence.sequence_id] += logprobs
        return output

    def close(self) -> None:
        self.runner.close()


class EngineLoop:
    """One engine; its scheduler is checked after every step."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        batch: int = 16,
        step_tokens: int = 512,
        info: RunnerInfo | None = None,
        overlap: bool = False,
        drafts: DraftLimits = NO_DRAFTS,
    ) -> None:
        self.runner = RecordingRunner(runner, info or runner.info)
        self.step_tokens = step_tokens
        limits = Limits(batch, step_tokens, drafts=drafts)
        self.engine = Engine(self.runner, limits, overlap=overlap, adapters=runner.adapters)
        self.terminals: dict[int, Terminal] = {}

    def run(
        self, prompts: list[list[int]], num_outputs: int, *, staggered: bool = False, **fields: Any
    ) -> list[Sequence]:
        """Serve the prompts to their end and give their sequences; `fields` are more of Sequence's.

        `staggered`: one or two of them come before each step, instead of all before the first.
        """
        sequences = [self.sequence(prompt, num_outputs, **fields) for prompt in prompts]
        self.serve(sequences, staggered=staggered)
        return sequences

    def serve(self, sequences: list[Sequence], *, staggered: bool = False) -> None:
        """Serve sequences made by `sequence` to their end."""
        for arriving in _one_or_two(sequences) if staggered else [sequences]:
            self.engine.take(Inbox(sequences=arriving))
            self._step()
        while self.engine.has_work:
            self._step()

    @property
    def num_preemptions(self) -> int:
        return self.engine.scheduler.roster.num_preemptions

    def _step(self) -> None:
        result = self.engine.step()
        self.engine.scheduler.check_integrity()
        assert result.num_batch_tokens <= self.step_tokens
        self.terminals |= {ended.sequence_id: ended.terminal for ended in result.ended}

    def sequence(self, prompt: list[int], num_outputs: int, **fields: Any) -> Sequence:
        number = next(SEQUENCE_IDS)
        return Sequence(
            sequence_id=number, token_ids=list(prompt), num_prompt_tokens=len(prompt), arrival_s=float(number),
            **({"sampling": GREEDY, "stop": StopParams(max_tokens=num_outputs)} | fields),
        )  # fmt: skip


def _one_or_two(sequences: list[Sequence]) -> Iterator[list[Sequence]]:
    start, size = 0, 1
    while start < len(sequences):
        yield sequences[start : start + size]
        start, size = start + size, 3 - size
