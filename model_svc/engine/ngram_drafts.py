"""Drafts what follows from what followed before: prompt lookup, without a second model (Saxena, 2023).

Knows the tokens of sequences. Does not know whether a draft was right, nor how long one is worth its cost.
"""

from model_svc.engine.sequence import Sequence

MOST_INDEXED = 16_384
"""Positions of a sequence that are indexed at once; past it the older half is forgotten."""
MOST_CANDIDATES = 8
"""Places that are looked at, the latest first."""
LONGEST_MATCH = 16
"""Tokens in common after which no better place is looked for."""


class NgramDrafter:
    """An index for each sequence that is drafted for, from its first look-up until it is forgotten."""

    def __init__(self) -> None:
        self._by_sequence: dict[int, NgramIndex] = {}

    def find(self, sequence: Sequence, num_tokens: int) -> tuple[list[int], int]:
        """See `NgramIndex.find`. All tokens of the sequence are known."""
        index = self._by_sequence.get(sequence.sequence_id)
        if index is None:
            index = self._by_sequence[sequence.sequence_id] = NgramIndex()
        return index.find(sequence.token_ids, num_tokens)

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        self._by_sequence.pop(sequence.sequence_id, None)


class NgramIndex:
    """Where each pair of neighbouring tokens occurred in one growing sequence.

    Each token is entered once, in constant time. A look-up compares at most MOST_CANDIDATES places, however long the
    sequence is.
    """

    def __init__(self) -> None:
        self._first = 0
        """The first position that is indexed."""
        self._latest: dict[int, int] = {}
        """By pair: the last position at which its second token stands, of those indexed."""
        self._earlier: list[int] = []
        """By position from `_first` on: where the pair that ends there ended before; -1: nowhere."""

    def find(self, token_ids: list[int], num_tokens: int) -> tuple[list[int], int]:
        """What may follow these tokens, which begin with those of the last call, and how many tokens say so.

        The place whose last tokens are the longest match, the latest of equals; without two that match there is none.
        What follows there is taken, as often as it takes for `num_tokens`, where the sequence repeats itself.
        """
        end = len(token_ids) - 1
        self._enter(token_ids, end)
        if end < 1:
            return [], 0
        best, longest = -1, 0
        place = self._latest.get(token_ids[end - 1] << 32 | token_ids[end], -1)
        for _ in range(MOST_CANDIDATES):
            if place < self._first or longest == LONGEST_MATCH:
                break
            length = 2
            while (
                length < LONGEST_MATCH and length <= place and token_ids[place - length] == token_ids[end - length]
            ):  # fmt: skip
                length += 1
            if length > longest:
                best, longest = place, length
            place = self._earlier[place - self._first]
        if best < 0:
            return [], 0
        drafts = token_ids[best + 1 : best + 1 + num_tokens]
        while len(drafts) < num_tokens:
            drafts += drafts[: num_tokens - len(drafts)]
        return drafts, longest

    def _enter(self, token_ids: list[int], stop: int) -> None:
        """Index the positions before `stop` that are not yet."""
        start = self._first + len(self._earlier)
        if stop - self._first > MOST_INDEXED:
            start = self._first = stop - MOST_INDEXED // 2
            self._latest, self._earlier = {}, []
        if start >= stop:
            return
        if start == 0:
            self._earlier.append(-1)  # the first token ends no pair
            start = 1
        latest, earlier = self._latest, self._earlier
        previous = token_ids[start - 1]
        for position, token_id in enumerate(token_ids[start:stop], start):
            pair = previous << 32 | token_id
            earlier.append(latest.get(pair, -1))
            latest[pair] = position
            previous = token_id
