from dataclasses import replace

import pytest

from model_svc.engine.engine import MAX_FAILED_STEPS, Engine
from model_svc.engine.events import Abort, Inbox
from model_svc.engine.scheduler import Limits
from model_svc.engine.sequence import Sequence
from tests.fakes.runner import FakeRunner, runner_info
from tokenwire.errors import Internal
from tokenwire.requests import CancelReason, FinishReason
from tokenwire.sampling import NEUTRAL, StopParams


def make(sequence_id: int, max_tokens: int = 3) -> Sequence:
    greedy = replace(NEUTRAL, seed=0)
    return Sequence(sequence_id, [1, 2, sequence_id], 3, greedy, StopParams(max_tokens))


def engine() -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(runner_info())
    return Engine(runner, Limits(4, 16)), runner


def test_a_step_reports_tokens_ends_load_and_what_was_received() -> None:
    subject, _ = engine()
    subject.take(Inbox([make(1, max_tokens=1), make(2)]))
    result = subject.step()
    assert result.new.sequence_ids == [1, 2] and len(result.new.token_ids) == 2
    assert [ended.sequence_id for ended in result.ended] == [1]
    assert (result.num_received, result.load.running, result.load.kv_blocks_used) == (2, 1, 1)
    assert (result.num_batch_tokens, result.num_batch_sequences) == (6, 2)


def test_an_abort_of_the_same_message_as_its_sequence_ends_it() -> None:
    subject, runner = engine()
    subject.take(Inbox([make(1)], [Abort(1, CancelReason.CLIENT), Abort(99, CancelReason.CLIENT)]))
    result = subject.step()
    assert [ended.terminal.reason for ended in result.ended] == [FinishReason.CANCELLED]
    assert not runner.batches and not subject.has_work


def test_a_failed_step_ends_its_sequences_and_the_engine_goes_on() -> None:
    subject, runner = engine()
    subject.take(Inbox([make(1)]))
    runner.fail_next = True
    (ended,) = subject.step().ended
    assert isinstance(ended.terminal.error, Internal) and ended.terminal.error.reason == "STEP_FAILED"
    subject.scheduler.check_integrity()
    subject.take(Inbox([make(2, max_tokens=1)]))
    (ended,) = subject.step().ended
    assert ended.terminal.reason is FinishReason.LENGTH


def test_steps_that_keep_failing_are_raised() -> None:
    subject, runner = engine()
    for number in range(MAX_FAILED_STEPS - 1):
        subject.take(Inbox([make(number)]))
        runner.fail_next = True
        subject.step()
    subject.take(Inbox([make(99)]))
    runner.fail_next = True
    with pytest.raises(RuntimeError, match="the device said no"):
        subject.step()
