"""What waits to run, in the order in which it should: priority, then fair shares, then arrival.

Knows ranks and tokens; does not know blocks, nor why a sequence waits.
"""

import bisect
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from model_svc.engine.fair_share import FairShare
from model_svc.engine.sequence import Sequence


def rank(sequence: Sequence) -> tuple[int, float, int]:
    """Sorts what should run first to the front, among sequences that run and within a tenant."""
    return (-sequence.priority, sequence.arrival_s, sequence.sequence_id)


def is_new(sequence: Sequence) -> bool:
    """Whether a waiting sequence has never run."""
    return not sequence.num_preemptions


@dataclass(slots=True)
class _Line:
    """One tenant's sequences of one priority, by arrival."""

    sequences: list[Sequence] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.sequences, sequence, key=rank)
        self.num_tokens += sequence.num_tokens

    def remove(self, sequence: Sequence) -> None:
        index = bisect.bisect_left(self.sequences, rank(sequence), key=rank)
        if index == len(self.sequences) or self.sequences[index] is not sequence:
            raise ValueError(f"sequence {sequence.sequence_id} does not wait in this line")
        del self.sequences[index]
        self.num_tokens -= sequence.num_tokens


class WaitingQueue:
    """Every waiting sequence, new or preempted; one line per priority and tenant."""

    def __init__(self, shares: FairShare) -> None:
        self.shares = shares
        self.num_new = 0
        """Those that have not run yet."""
        self._lines: dict[int, dict[str, _Line]] = {}
        """By priority, then tenant; without empty ones."""
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in no order that matters."""
        for line in self._all_lines():
            yield from line.sequences

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting sequences."""
        return sum(line.num_tokens for line in self._all_lines())

    @property
    def oldest_arrival_s(self) -> float | None:
        """When the new sequence that waits longest arrived; None: none waits."""
        first = (next((s.arrival_s for s in line.sequences if is_new(s)), None) for line in self._all_lines())
        return min((arrival_s for arrival_s in first if arrival_s is not None), default=None)

    def add(self, sequence: Sequence) -> None:
        """A sequence waits, to start or to go on."""
        tenant, lines = sequence.tenant, self._lines.setdefault(sequence.priority, {})
        if tenant not in lines:
            self.shares.begin_to_wait(tenant, sequence.priority, lines)
            lines[tenant] = _Line()
        lines[tenant].add(sequence)
        self._num_waiting += 1
        self.num_new += is_new(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out. Raises ValueError for one that does not wait."""
        priority, tenant = sequence.priority, sequence.tenant
        lines = self._lines[priority]
        lines[tenant].remove(sequence)
        self._num_waiting -= 1
        self.num_new -= is_new(sequence)
        if not lines[tenant].sequences:
            del lines[tenant]
            self.shares.stop_waiting(tenant, priority)
        if not lines:
            del self._lines[priority]

    def in_order(self) -> Iterator[Sequence]:
        """The sequences in order, as shares stand when each is asked for. The one given last may be removed."""
        for priority in sorted(self._lines, reverse=True):
            lines = {tenant: _still_there(line.sequences) for tenant, line in self._lines.get(priority, {}).items()}
            # Only the tenant whose sequence was given last may have been charged since.
            heads = [(self.shares.counter(tenant), tenant) for tenant in lines]
            heapq.heapify(heads)
            while heads:
                tenant = heads[0][1]
                sequence = next(lines[tenant], None)
                if sequence is None:
                    heapq.heappop(heads)
                else:
                    yield sequence
                    heapq.heapreplace(heads, (self.shares.counter(tenant), tenant))

    def ahead_of(self, sequence: Sequence) -> Iterator[Sequence]:
        """Those that certainly come before a sequence that joins now: of a higher priority, and its tenant's own.

        What shares among tenants let in before it is not certain.
        """
        for priority, lines in self._lines.items():
            if priority > sequence.priority:
                for line in lines.values():
                    yield from line.sequences
        own = self._lines.get(sequence.priority, {}).get(sequence.tenant)
        if own is not None:
            yield from own.sequences[: bisect.bisect_left(own.sequences, rank(sequence), key=rank)]

    def check_integrity(self) -> None:
        """Raise AssertionError unless lines are sorted, counted and without empty ones."""
        for line in self._all_lines():
            if not line.sequences or line.sequences != sorted(line.sequences, key=rank):
                raise AssertionError("a line of waiting sequences is empty, or not in order")
            if line.num_tokens != sum(sequence.num_tokens for sequence in line.sequences):
                raise AssertionError("the tokens of a line are miscounted")
        everyone = list(self)
        if len(everyone) != len(self) or sum(map(is_new, everyone)) != self.num_new:
            raise AssertionError("waiting sequences are miscounted")

    def _all_lines(self) -> Iterator[_Line]:
        for lines in self._lines.values():
            yield from lines.values()


def _still_there(sequences: list[Sequence]) -> Iterator[Sequence]:
    """Each of a list of which the one last given may be removed."""
    index = 0
    while index < len(sequences):
        given = sequences[index]
        yield given
        if index < len(sequences) and sequences[index] is given:
            index += 1
