from model_svc.engine.deadlines import MAX_STALE, Deadlines
from model_svc.engine.sequence import Sequence
from tests.fakes.scheduling import Harness, sequence
from tokenwire.requests import CancelReason, FinishReason


def test_each_open_sequence_is_due_once_in_order() -> None:
    first, second, gone, without = (
        sequence([1], deadline_s=5.0), sequence([1], deadline_s=3.0), sequence([1], deadline_s=1.0), sequence([1])
    )  # fmt: skip
    alive: dict[int, Sequence] = {s.sequence_id: s for s in (first, second, gone, without)}
    deadlines = Deadlines(alive)
    assert deadlines.next_s is None
    for each in list(alive.values()):
        deadlines.add(each)
    del alive[gone.sequence_id]
    assert list(deadlines.take_due(2.9)) == []
    assert deadlines.next_s == 3.0
    assert list(deadlines.take_due(9.0)) == [second, first] and deadlines.next_s is None


def test_far_deadlines_of_ended_sequences_do_not_add_up() -> None:
    harness = Harness()
    for _ in range(1000):
        each = sequence([1], deadline_s=harness.clock.now_s + 1e9)
        harness.add(each)
        harness.scheduler.abort(each.sequence_id, CancelReason.CLIENT)
    last = sequence([1], deadline_s=harness.clock.now_s + 0.05, max_tokens=50)
    harness.add(last)
    assert len(harness.scheduler._deadlines._heap) <= MAX_STALE + 3
    harness.run()
    assert harness.reason(last) is FinishReason.DEADLINE
