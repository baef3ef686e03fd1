"""What one rendering of a chat template may still use, of time and of all that is made and looked at on the way.

One character that is made counts one; what else takes time counts as many as take that long, and more. Knows nothing
of templates.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizer_svc.json_size import text_pieces

WORK_PER_OUTPUT = 16
"""Characters that may be made on the way for each that may come out."""
PART_CHARS = 16
"""What a place in a new list counts: it may hold a text of its own, such as those of `split`."""

QUOTED_CHARS = 10
"""What a character may become in a text of a list or dictionary, which quotes those in it."""


class TooMuch(Exception):
    """A template goes beyond its bounds; the message says which."""


class Budget:
    """What one rendering may still use."""

    __slots__ = ("_end_s", "_limit", "_seconds", "_used")

    def __init__(self, *, seconds: float, num_chars: int) -> None:
        """`num_chars`: of everything that is made, whether it comes out or not."""
        self._seconds = seconds
        self._end_s = time.monotonic() + seconds
        self._limit = num_chars
        self._used = 0

    def tick(self) -> None:
        """Something may have taken time. Raises TooMuch."""
        if time.monotonic() > self._end_s:
            raise TooMuch(f"the chat template took longer than {self._seconds:g} s")

    def take(self, num_chars: int) -> None:
        """That much is about to be made. Raises TooMuch, and ValueError for less than nothing."""
        if num_chars < 0:
            raise ValueError(f"{num_chars} characters cannot be made")
        self._used += num_chars
        if self._used > self._limit:
            raise TooMuch(f"the chat template makes more than {self._limit} characters")

    def take_text_of(self, value: Any) -> None:
        """A value is about to become text. Raises TooMuch."""
        if isinstance(value, str):
            self.take(len(value))
        else:
            self.take(self.walk(value) * (QUOTED_CHARS - 1))

    def walk(self, value: Any) -> int:
        """A value is about to be walked through. Returns its characters, at least. Raises TooMuch."""
        total = 0
        for size in text_pieces(value):
            self.tick()
            self.take(size)
            total += size
        return total

    def text_of(self, value: Any) -> str:
        """A value as text. Raises TooMuch."""
        if isinstance(value, str):
            return value
        self.take_text_of(value)
        return str(value)

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """The values as a new list. Raises TooMuch."""
        return list(Counted(values, self, PART_CHARS))


class Counted:
    """Something to loop over; each step is counted."""

    __slots__ = ("_budget", "_values", "_weight")

    def __init__(self, values: Iterable[Any], budget: Budget, weight: int) -> None:
        self._values, self._budget, self._weight = values, budget, weight

    def __iter__(self) -> Iterator[Any]:
        tick, take, weight = self._budget.tick, self._budget.take, self._weight
        for value in self._values:
            tick()
            take(weight)
            yield value

    def __bool__(self) -> bool:
        return bool(self._values)

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError where there is none, as Jinja expects
