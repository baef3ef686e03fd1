"""Text alone that waits in an outbox, in the columns that a frame has.

A row costs no object of its own, since many sequences share their tokens' texts. Does not know how sequences end.
"""

import itertools


class Columns:
    """Text alone, in rows: of which sequence, its text, and the tokens behind it."""

    __slots__ = ("counts", "handles", "texts")

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.texts: list[str] = []
        self.counts: list[int] = []

    def append(self, handle: int, text: str, num_tokens: int) -> None:
        """A row behind the others."""
        self.handles.append(handle)
        self.texts.append(text)
        self.counts.append(num_tokens)

    def merged(self) -> "Columns":
        """One row per sequence."""
        texts: dict[int, list[str]] = {}
        counts: dict[int, int] = {}
        for handle, text, num_tokens in zip(self.handles, self.texts, self.counts, strict=True):
            texts.setdefault(handle, []).append(text)
            counts[handle] = counts.get(handle, 0) + num_tokens
        found = Columns()
        found.handles, found.counts = list(texts), list(counts.values())
        found.texts = ["".join(pieces) for pieces in texts.values()]
        return found

    def cut(self, max_chars: int) -> "Columns":
        """Take what is behind the row that reaches so many characters."""
        rest = Columns()
        if sum(map(len, self.texts)) > max_chars:
            ends = itertools.accumulate(map(len, self.texts))
            place = next(index for index, end in enumerate(ends, start=1) if end >= max_chars)
            rest.handles, self.handles = self.handles[place:], self.handles[:place]
            rest.texts, self.texts = self.texts[place:], self.texts[:place]
            rest.counts, self.counts = self.counts[place:], self.counts[:place]
        return rest

    def take(self, handle: int) -> tuple[str, int]:
        """Take a sequence's rows, as one."""
        places = [index for index, each in enumerate(self.handles) if each == handle]
        text, num_tokens = "".join(self.texts[i] for i in places), sum(self.counts[i] for i in places)
        for index in reversed(places):
            del self.handles[index], self.texts[index], self.counts[index]
        return text, num_tokens
