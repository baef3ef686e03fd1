"""What must hold after a step: lists, slots and blocks add up; a sequence's tokens come once, before its one end."""

from collections import Counter

from model_svc.engine.events import Ended, NewTokens
from model_svc.engine.scheduler import Scheduler
from model_svc.engine.sequence import PENDING


class StepCheck:
    """Follows one scheduler from its start."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._num_given: Counter[int] = Counter()
        """Tokens given out, of each open sequence that has had some."""

    def after(self, new: NewTokens, ended: list[Ended]) -> None:
        """`new` and `ended` are what the step gives out. Raises AssertionError."""
        self._scheduler.check_integrity()
        sequences, ends = self._scheduler.sequences, Counter(each.sequence_id for each in ended)
        if repeated := [sequence_id for sequence_id, count in ends.items() if count > 1 or sequence_id in sequences]:
            raise AssertionError(f"sequences {repeated[:10]} ended twice, or go on after their end")
        self._num_given.update(new.sequence_ids)
        if unknown := [each for each in self._num_given if each not in sequences and each not in ends]:
            raise AssertionError(f"sequences {unknown[:10]} are gone without an end, or have tokens after it")
        for sequence_id in ends:
            self._num_given.pop(sequence_id, None)
        for sequence_id, num_given in self._num_given.items():
            sequence = sequences[sequence_id]
            num_known = sequence.num_new_outputs - sequence.token_ids[-2:].count(PENDING)
            if num_given != num_known:
                raise AssertionError(f"sequence {sequence_id} has {num_known} tokens, and {num_given} were given out")
