"""A scheduler over the fake runner, stepped by hand under a clock of its own, with every promise checked on the way."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from model_svc.engine.batch import RunnerInfo
from model_svc.engine.engine import Engine
from model_svc.engine.events import Ended
from model_svc.engine.limits import Limits
from model_svc.engine.sequence import Sequence
from tests.fakes.runner import FakeRunner, next_token, runner_info
from tokenwire.requests import FinishReason, Usage
from tokenwire.sampling import NEUTRAL, StopParams

IDS = count(1)
GREEDY = replace(NEUTRAL, seed=0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sequence(
    prompt: list[int],
    *,
    max_tokens: int = 8,
    stop: tuple[int, ...] = (),
    priority: int = 0,
    arrival_s: float = 100.0,
    deadline_s: float | None = None,
    **fields: Any,
) -> Sequence:
    return Sequence(
        sequence_id=next(IDS),
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        stop=StopParams(max_tokens, stop),
        priority=priority,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
        **({"sampling": GREEDY} | fields),
    )


def expected_output(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Harness:
    """A scheduler with the fake runner under it; checks integrity after every step."""

    def __init__(
        self,
        *,
        batch: int = 8,
        budget: int = 32,
        limits: dict[str, Any] | None = None,
        overlap: bool = False,
        of: RunnerInfo | None = None,
        **info: int,
    ) -> None:
        """`of`: what the runner says of itself; else `info` of `runner_info`."""
        self.clock = Clock()
        self.runner = FakeRunner(of or runner_info(**info))  # type: ignore[arg-type]
        self.limits = Limits(batch, budget, **(limits or {}))
        self.engine = Engine(self.runner, self.limits, overlap=overlap, clock=self.clock)
        self.scheduler = self.engine.scheduler
        self.outputs: dict[int, list[int]] = {}
        self.ended: dict[int, Ended] = {}
        self.prompt_logprobs: dict[int, list[int]] = {}
        """Token ids of the prompt log-probabilities each sequence was given."""

    def add(self, *sequences: Sequence) -> None:
        for added in sequences:
            self.outputs[added.sequence_id] = []
            self.scheduler.add(added)

    def step(self) -> None:
        num_batches = len(self.runner.batches)
        result = self.engine.step()
        for batch in self.runner.batches[num_batches:]:
            assert batch.num_tokens <= self.limits.max_step_tokens
            assert len(batch.rows) <= self.limits.max_batch_size
            assert len({row.sequence.sequence_id for row in batch.rows}) == len(batch.rows)
            assert all(row.num_new_tokens >= 1 for row in batch.rows)
        new = result.new
        for sequence_id, logprobs in new.prompt_logprobs.items():
            assert not self.outputs[sequence_id], "prompt log-probabilities after a token"
            self.prompt_logprobs.setdefault(sequence_id, []).extend(entry.token_id for entry in logprobs)
        for sequence_id, logprobs in new.logprobs.items():
            tokens = [t for i, t in zip(new.sequence_ids, new.token_ids, strict=True) if i == sequence_id]
            assert [entry.token_id for entry in logprobs] == tokens
        for sequence_id, token_id in zip(new.sequence_ids, new.token_ids, strict=True):
            assert sequence_id not in self.ended
            self.outputs[sequence_id].append(token_id)
        self.scheduler.check_integrity()
        for ended in result.ended:
            assert ended.sequence_id not in self.ended, "a second terminal event"
            self.ended[ended.sequence_id] = ended
        self.clock.now_s += 0.01

    def run(self, until: Callable[[], bool] | None = None, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if until() if until else not self.engine.has_work:
                return
            self.step()
        raise AssertionError("no end in sight")

    def usage(self, of: Sequence) -> Usage:
        return self.ended[of.sequence_id].terminal.usage

    def reason(self, of: Sequence) -> FinishReason:
        return self.ended[of.sequence_id].terminal.reason
