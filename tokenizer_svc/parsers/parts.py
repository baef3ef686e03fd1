"""What a raw text is split into: parts that together are the whole text, each saying what its piece of it is."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a part is."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"
    """A tool call begins; the value is its function's name."""
    ARGUMENTS = "arguments"
    """More of the arguments of the call that began last; the value is JSON text."""
    MARKUP = "markup"
    """Markers and syntax that nobody is shown; the value is empty."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece. The raw texts of all parts in order are the text that was read: nothing is lost."""

    kind: Kind
    raw: str
    value: str


class Parts:
    """Collects parts while a text is read."""

    def __init__(self, max_calls: int | None = None) -> None:
        """`max_calls`: after so many calls nothing more is wanted; None: no limit."""
        self._found: list[Part] = []
        self._num_calls = 0
        self._max_calls = max_calls

    @property
    def full(self) -> bool:
        """Whether nothing more is wanted."""
        return self._max_calls is not None and self._num_calls >= self._max_calls

    def add(self, kind: Kind, raw: str) -> None:
        """A piece that stands for itself, or for nothing."""
        if raw:
            self._found.append(Part(kind, raw, "" if kind is Kind.MARKUP else raw))

    def begin_call(self, raw: str, name: str) -> None:
        """A call's beginning was read."""
        self._num_calls += 1
        self._found.append(Part(Kind.CALL, raw, name))

    def arguments(self, raw: str, value: str) -> None:
        """More of a call's arguments, as JSON text; the model may have written something else."""
        if raw or value:
            self._found.append(Part(Kind.ARGUMENTS, raw, value))

    def take(self) -> list[Part]:
        """What has been added since the last time."""
        found, self._found = self._found, []
        return found
