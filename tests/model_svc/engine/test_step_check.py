"""After a step: what adds up is let be, and what does not is said."""

import logging
from dataclasses import replace

import pytest

from model_svc.engine.engine import Engine
from model_svc.engine.events import Ended, Inbox, NewTokens
from model_svc.engine.limits import Limits
from model_svc.engine.mock_runner import MockRunner
from model_svc.engine.sequence import Sequence
from model_svc.engine.step_check import StepCheck
from model_svc.settings import EngineSettings
from tokenwire.invariants import BROKEN
from tokenwire.requests import FinishReason, Terminal
from tokenwire.sampling import NEUTRAL, StopParams


def engine(*, overlap: bool = False, check: bool = True) -> Engine:
    runner = MockRunner(EngineSettings(engine="mock", mock_step_ms=0.0, mock_kv_blocks=600))
    return Engine(runner, Limits(4, 16), overlap=overlap, check=check)


def sequence(number: int, num_tokens: int) -> Sequence:
    return Sequence(number, [1, 2, 3], 3, replace(NEUTRAL, seed=0), StopParams(num_tokens))


@pytest.mark.parametrize("overlap", [False, True])
def test_runs_that_are_right_say_nothing(overlap: bool, caplog: pytest.LogCaptureFixture) -> None:
    subject = engine(overlap=overlap)
    subject.take(Inbox([sequence(number, 1 + number) for number in range(12)]))
    while subject.has_work:
        subject.step()
    assert not caplog.records


def test_a_lost_block_is_said_with_the_next_step(caplog: pytest.LogCaptureFixture) -> None:
    subject = engine()
    subject.take(Inbox([sequence(1, 8)]))
    subject.step()
    subject.scheduler.sequences[1].block_table.pop()
    with caplog.at_level(logging.CRITICAL):
        subject.step()
    assert BROKEN in caplog.text and "counted otherwise" in caplog.text


def ended(number: int) -> Ended:
    return Ended(number, Terminal(FinishReason.LENGTH))


@pytest.mark.parametrize(
    ("new", "ends", "said"),
    [
        (NewTokens([1], [5]), [], "2 tokens, and 3 were given out"),
        (NewTokens(), [ended(1)], "go on after their end"),
        (NewTokens(), [ended(7), ended(7)], "ended twice"),
        (NewTokens([7], [5]), [], "have tokens after it"),
        (NewTokens([7], [5]), [ended(7)], ""),
    ],
)
def test_tokens_and_ends_come_once(new: NewTokens, ends: list[Ended], said: str) -> None:
    subject = engine(check=False)
    check = StepCheck(subject.scheduler)
    subject.take(Inbox([sequence(1, 8)]))
    for _ in range(2):
        result = subject.step()
        check.after(result.new, result.ended)
    if said:
        with pytest.raises(AssertionError, match=said):
            check.after(new, ends)
    else:
        check.after(new, ends)
