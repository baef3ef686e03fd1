from dataclasses import replace

import pytest

from model_svc.engine.engine import MAX_FAILED_STEPS, Engine
from model_svc.engine.events import Abort, Inbox
from model_svc.engine.limits import Limits
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


def ahead() -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(runner_info())
    return Engine(runner, Limits(4, 16), overlap=True), runner


def test_with_overlap_a_step_is_launched_before_the_last_is_read() -> None:
    subject, runner = ahead()
    subject.take(Inbox([make(1, max_tokens=3)]))
    made = []
    for num_launched in (1, 2, 3, 3):
        made.append(subject.step().new.token_ids)
        assert len(runner.batches) == num_launched
    assert [len(tokens) for tokens in made] == [0, 1, 1, 1], "the last is not run ahead of: its length is known"
    assert not subject.has_work and subject.idle_s() is None


def test_a_stop_seen_late_costs_one_row_and_no_token() -> None:
    subject, runner = ahead()
    plain, _ = engine()
    plain.take(Inbox([make(1, max_tokens=9)]))
    tokens = [plain.step().new.token_ids[0] for _ in range(9)]
    stopping = make(2, max_tokens=9)
    stopping.token_ids = [1, 2, 1]
    stopping.stop = StopParams(9, (tokens[4],))
    subject.take(Inbox([stopping]))
    made: list[int] = []
    ended = []
    while subject.has_work:
        result = subject.step()
        made += result.new.token_ids
        ended += result.ended
    assert made == tokens[:4] and len(runner.batches) == 6
    assert [(e.terminal.reason, e.terminal.stop_token_id) for e in ended] == [(FinishReason.STOP_TOKEN, tokens[4])]
    assert subject.scheduler.kv.pool.num_used == 0


def test_a_sequence_taken_back_while_its_token_is_on_the_way_counts_what_was_given() -> None:
    subject, _ = ahead()
    subject.take(Inbox([make(1, max_tokens=9)]))
    given = [subject.step().new.token_ids for _ in range(3)]
    subject.take(Inbox(aborts=[Abort(1, CancelReason.CLIENT)]))
    last = subject.step()
    assert last.new.token_ids == [] and not subject.has_work
    assert last.ended[0].terminal.usage.completion_tokens == sum(map(len, given)) == 2


@pytest.mark.parametrize("when", ["launch", "collect"])
def test_a_step_that_fails_while_another_is_on_its_way_ends_its_sequences_once(when: str) -> None:
    subject, runner = ahead()
    subject.take(Inbox([make(1, max_tokens=9), make(2, max_tokens=4)]))
    given = [id_ for _ in range(3) for id_ in subject.step().new.sequence_ids]
    runner.fail_next, runner.fail_next_collect = when == "launch", when == "collect"
    ended = []
    while subject.has_work:
        result = subject.step()
        ended += result.ended
        given += result.new.sequence_ids
        subject.scheduler.check_integrity()
    assert sorted(each.sequence_id for each in ended) == [1, 2]
    for each in ended:
        assert each.terminal.usage.completion_tokens == given.count(each.sequence_id)
    subject.take(Inbox([make(3, max_tokens=1)]))
    while subject.has_work:
        ended += subject.step().ended
    assert ended[-1].terminal.reason is FinishReason.LENGTH and subject.scheduler.kv.pool.num_used == 0
