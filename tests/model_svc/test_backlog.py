from dataclasses import replace

import pytest

from model_svc.backlog import Backlog
from model_svc.engine.events import EngineLoad
from model_svc.engine.sequence import Sequence
from tests.fakes.scheduling import GREEDY, sequence
from tokenwire.errors import Overloaded


def naming(num_ids: int, *, choices: int = 1) -> list[Sequence]:
    """The choices of one request that names so many token ids."""
    sampling = replace(GREEDY, allowed_token_ids=tuple(range(num_ids)))
    made = [sequence([1], sampling=sampling) for _ in range(choices)]
    for each in made:
        each.first_choice_id = made[0].sequence_id
    return made


def refused(backlog: Backlog, sequences: list[Sequence]) -> str:
    with pytest.raises(Overloaded) as caught:
        backlog.admit(sequences)
    assert caught.value.reason == "QUEUE_FULL" and caught.value.retry_after_s
    return caught.value.message


def test_what_is_on_its_way_counts_until_the_load_counts_it() -> None:
    backlog = Backlog(4, 100)
    for length in (3, 5, 7):
        backlog.sent(sequence([1] * length))
    assert (backlog.num_queued, backlog.num_queued_tokens, backlog.room) == (3, 15, (1, 85))
    with pytest.raises(AssertionError, match="miscounted"):
        backlog.check_integrity({})
    backlog.received(EngineLoad(running=1, queued=1, queued_tokens=5), 2)
    assert (backlog.num_queued, backlog.num_queued_tokens, backlog.room) == (2, 12, (2, 88))
    backlog.received(EngineLoad(running=3), 3)
    assert (backlog.num_queued, backlog.num_queued_tokens, backlog.room) == (0, 0, (4, 100))


def test_a_request_that_finds_nothing_waiting_may_be_larger_than_the_bounds() -> None:
    backlog = Backlog(2, 10)
    large = [sequence([1] * 6) for _ in range(3)]
    backlog.admit(large)
    for each in large:
        backlog.sent(each)
    assert backlog.room == (-1, -8)
    assert refused(backlog, [sequence([1])]).startswith("3 sequences wait already and 2 may (max_queued_requests); 1 ")
    backlog.received(EngineLoad(queued=1, queued_tokens=9), 3)
    backlog.admit([sequence([1])])
    assert refused(backlog, [sequence([1, 2])]).startswith("9 prompt tokens wait already and 10 may")


def test_named_ids_are_held_until_a_requests_last_choice_has_ended() -> None:
    backlog = Backlog(100, 1000)
    first, second = naming(900, choices=2)
    backlog.admit([first, second])
    for each in (first, second):
        backlog.sent(each)
    backlog.received(EngineLoad(running=2), 2)
    assert "name 900 token ids" in refused(backlog, naming(101))
    backlog.admit(naming(100))
    backlog.ended(second)
    assert "name 900 token ids" in refused(backlog, naming(101))
    backlog.ended(first)
    backlog.admit(naming(5000))


def test_another_engine_begins_with_nothing() -> None:
    backlog = Backlog(100, 1000)
    (only,) = naming(900)
    backlog.sent(only)
    backlog.all_ended()
    backlog.admit(naming(900))
    assert backlog.num_queued == 1, "until there is another engine"
    backlog.restart(num_blocks=7)
    assert (backlog.num_queued, backlog.num_queued_tokens, backlog.load) == (0, 0, EngineLoad(kv_blocks_total=7))
    backlog.sent(sequence([1, 2]))
    backlog.received(EngineLoad(running=1), 1)
    assert backlog.num_queued_tokens == 0
