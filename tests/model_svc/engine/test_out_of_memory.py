"""A device that has no memory for some steps: what was begun goes on, in smaller ones, and nothing is lost."""

import logging
import random
from dataclasses import replace

import pytest

from model_svc.engine import step_budget
from model_svc.engine.engine import Engine
from model_svc.engine.limits import Limits
from model_svc.engine.sequence import Sequence
from model_svc.engine.step_budget import StepBudget
from tests.fakes.runner import FakeRunner, runner_info
from tests.fakes.scheduling import expected_output, sequence
from tokenwire.errors import Overloaded
from tokenwire.requests import FinishReason, Terminal

RNG = random.Random(5)


class Loop:
    """The engine over the fake runner; counts what is given out and checks the scheduler after every step."""

    def __init__(self, *, batch: int = 8, budget: int = 32, num_blocks: int = 200, overlap: bool = False) -> None:
        self.runner = FakeRunner(replace(runner_info(num_blocks=num_blocks), max_batch_size=batch))
        self.engine = Engine(self.runner, Limits(batch, budget), overlap=overlap)
        self.outputs: dict[int, list[int]] = {}
        self.terminals: dict[int, Terminal] = {}

    def run(self, *sequences: Sequence, most_steps: int = 3000) -> None:
        for added in sequences:
            self.outputs[added.sequence_id] = []
            self.engine.add(added)
        for _ in range(most_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("no end in sight")

    def step(self) -> None:
        result = self.engine.step()
        self.engine.scheduler.check_integrity()
        for sequence_id, token_id in zip(result.new.sequence_ids, result.new.token_ids, strict=True):
            assert sequence_id not in self.terminals
            self.outputs[sequence_id].append(token_id)
        for ended in result.ended:
            assert ended.sequence_id not in self.terminals, "a second terminal event"
            self.terminals[ended.sequence_id] = ended.terminal

    def check(self, *sequences: Sequence, num_outputs: int) -> None:
        for made in sequences:
            prompt = made.token_ids[: made.num_prompt_tokens]
            assert self.outputs[made.sequence_id] == expected_output(prompt, num_outputs)
            assert self.terminals[made.sequence_id].reason is FinishReason.LENGTH


def prompts(*lengths: int, max_tokens: int = 10) -> list[Sequence]:
    return [
        sequence([RNG.randrange(900) for _ in range(length)], max_tokens=max_tokens, arrival_s=100.0 + index)
        for index, length in enumerate(lengths)
    ]


MANY = (20, 3, 1, 14, 30, 7, 2, 9, 11, 5)


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
@pytest.mark.parametrize(
    ("tokens", "rows", "lengths"), [(9, 99, MANY), (99, 3, MANY), (99, 1, MANY), (5, 2, (5, 7, 3)), (3, 1, (2, 3))]
)
def test_no_token_is_lost_or_repeated(tokens: int, rows: int, lengths: tuple[int, ...], overlap: bool) -> None:
    loop = Loop(batch=8, budget=32, overlap=overlap)
    loop.runner.memory_tokens, loop.runner.memory_rows = tokens, rows
    given = prompts(*lengths)
    loop.run(*given)
    loop.check(*given, num_outputs=10)
    load = loop.engine.scheduler.load()
    assert load.num_out_of_memory > 0 and load.num_preemptions > 0
    assert loop.engine.scheduler.kv.pool.num_used == 0


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
@pytest.mark.parametrize("seed", range(6))
def test_memory_that_comes_and_goes_loses_nothing(seed: int, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run out in the middle of decodes whose tokens are still on their way, with few blocks besides."""
    monkeypatch.setattr(step_budget, "GOOD_STEPS", 3)
    rng = random.Random(seed)
    loop = Loop(batch=6, budget=24, num_blocks=30, overlap=overlap)
    given = prompts(*MANY)
    arriving = list(given)
    while arriving or loop.engine.has_work:
        if arriving and rng.random() < 0.4:
            loop.outputs[arriving[0].sequence_id] = []
            loop.engine.add(arriving.pop(0))
        loop.runner.memory_rows = rng.choice((1, 2, 4, 99))
        loop.runner.memory_tokens = rng.choice((6, 12, 99))
        loop.step()
    loop.check(*given, num_outputs=10)
    assert loop.engine.scheduler.load().num_out_of_memory > 0


def test_the_lowest_ranked_half_gives_way_and_the_budget_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(batch=4, budget=16)
    given = prompts(2, 2, 2, max_tokens=20)
    for added in given:
        loop.outputs[added.sequence_id] = []
        loop.engine.add(added)
    loop.step()
    loop.runner.memory_rows = 2
    with caplog.at_level(logging.WARNING):
        loop.step()
        loop.step()
    assert [s.num_preemptions for s in given] == [0, 0, 1]
    assert len(caplog.records) == 1 and "out of memory in a step of 3 sequences and 3 tokens" in caplog.text
    assert "1 preempted, steps of 8 tokens" in caplog.text
    load = loop.engine.scheduler.load()
    assert (load.running, load.queued, load.step_budget_tokens, load.num_out_of_memory) == (2, 1, 8, 1)
    loop.run()
    loop.check(*given, num_outputs=20)


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_a_prompt_alone_is_computed_in_smaller_chunks(overlap: bool) -> None:
    loop = Loop(batch=2, budget=32, overlap=overlap)
    loop.runner.memory_tokens = 5
    (only,) = prompts(30)
    loop.run(only)
    loop.check(only, num_outputs=10)
    assert only.num_preemptions == 0
    assert loop.engine.scheduler.roster.budget.max_tokens == 4


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_a_sequence_that_fails_alone_ends_and_the_others_go_on(overlap: bool) -> None:
    loop = Loop(batch=4, overlap=overlap)
    given = prompts(3, 3, 3)
    loop.runner.memory_rows = 0
    for added in given:
        loop.outputs[added.sequence_id] = []
        loop.engine.add(added)
    while not loop.terminals:
        loop.step()
    loop.runner.memory_rows = 99
    loop.run()
    ended = loop.terminals[given[0].sequence_id]
    assert isinstance(ended.error, Overloaded) and ended.error.reason == "OUT_OF_MEMORY"
    assert ended.error.retry_after_s
    loop.check(*given[1:], num_outputs=10)


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_a_device_without_any_memory_ends_sequences_but_not_the_engine(overlap: bool) -> None:
    loop = Loop(batch=4, overlap=overlap)
    loop.runner.memory_rows = 0
    given = prompts(*[3] * 12)
    loop.run(*given)
    assert {terminal.reason for terminal in loop.terminals.values()} == {FinishReason.ERROR}
    assert len(loop.terminals) == 12


def test_the_budget_comes_back_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_budget, "GOOD_STEPS", 5)
    loop = Loop(batch=4, budget=32)
    budget = loop.engine.scheduler.roster.budget
    loop.runner.memory_rows = 1
    given = prompts(2, 2, 2, 2, max_tokens=8)
    for added in given:
        loop.outputs[added.sequence_id] = []
        loop.engine.add(added)
    loop.step()
    loop.step()
    assert (budget.max_tokens, budget.max_sequences) == (8, 1)
    loop.runner.memory_rows = 99
    loop.run()
    loop.check(*given, num_outputs=8)
    assert (budget.max_tokens, budget.max_sequences) == (32, 4)


def test_a_thousand_good_steps_double_it() -> None:
    budget = StepBudget(100, 10)
    assert budget.shrink(80, 4)
    assert (budget.max_tokens, budget.max_sequences) == (50, 4)
    for _ in range(999):
        budget.grow()
    assert (budget.max_tokens, budget.max_sequences) == (50, 4)
    budget.grow()
    assert (budget.max_tokens, budget.max_sequences) == (100, 8)
    for _ in range(1000):
        budget.grow()
    assert (budget.max_tokens, budget.max_sequences) == (100, 10)


def test_it_never_falls_below_the_batch() -> None:
    budget = StepBudget(100, 10)
    for left in (9, 9, 9, 9):
        budget.shrink(100, left)
    assert (budget.max_tokens, budget.max_sequences) == (9, 9)
    assert not budget.shrink(9, None)
    assert budget.shrink(20, None)
    budget.shrink(1, 0)
    assert budget.max_sequences == 1 and budget.max_tokens >= 1
