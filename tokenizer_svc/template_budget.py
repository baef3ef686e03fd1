"""What one rendering of a chat template may use, and what each operation will take of it, told before it happens.

Knows operators, methods and filters by name; nothing of templates.
"""

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizer_svc.json_size import text_size

WORK_PER_OUTPUT = 16
"""Characters that may be made on the way for each that may come out."""
PART_CHARS = 16
"""What a place in a list counts: it may hold a text of its own, such as those of `split`."""
MAX_WIDTH = 1_000
"""Of padding, indents, batches and decimals."""
MAX_INTEGER_BITS = 4_096
WIDTH_FILTERS = ("batch", "center", "indent", "round", "slice", "tojson")
WIDTH_METHODS = ("center", "expandtabs", "ljust", "rjust", "zfill")
TEXT_FREE_FILTERS = (
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "join", "last", "length", "list",
    "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort", "sum", "tojson",
    "unique",
)  # fmt: skip
"""Filters that make no text of a list as a whole, or whose text is weighed by itself."""
MAX_FORMAT_CHARS = 10_000
WIDE_PERCENT = re.compile(r"%[^a-zA-Z%(]*(\d{4}|\*)|%\(.*\)[^a-zA-Z%]*(\d{4}|\*)", re.DOTALL)
WIDE_BRACES = re.compile(r"\{[^{}]*(\d{4}|\{)")
"""A width or a number of places above 999 in a format, or one that is not written out."""


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

    @property
    def left(self) -> int:
        """Characters that may still be made."""
        return self._limit - self._used

    def tick(self) -> None:
        """Something may have taken time. Raises TooMuch."""
        if time.monotonic() > self._end_s:
            raise TooMuch(f"the chat template took longer than {self._seconds:g} s")

    def take(self, num_chars: int) -> None:
        """That much is about to be made. Raises TooMuch."""
        self._used += num_chars
        if self._used > self._limit:
            raise TooMuch(f"the chat template makes more than {self._limit} characters")

    def take_text_of(self, value: Any) -> None:
        """A value is about to become text."""
        self.take(text_size(value, self.left + 1))


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

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError where there is none, as Jinja expects


def weigh_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """An operation that Jinja calls by its sign. Raises TooMuch."""
    sized = (str, bytes, list, tuple)
    if operator == "+":
        if isinstance(left, sized):
            budget.take(len(left) + (len(right) if isinstance(right, sized) else 0))
    elif operator == "*":
        if isinstance(left, sized) and isinstance(right, int):
            budget.take(len(left) * max(0, right))
        elif isinstance(right, sized) and isinstance(left, int):
            budget.take(len(right) * max(0, left))
        elif isinstance(left, int) and isinstance(right, int):
            _refuse_bits(left.bit_length() + right.bit_length())
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            _refuse_bits(left.bit_length() * abs(right))
    elif isinstance(left, str | bytes):
        _weigh_format(budget, left if isinstance(left, str) else left.decode("latin-1"), right)


def _weigh_format(budget: Budget, text: str, values: Any) -> None:
    """`text % values`."""
    refuse_wide(WIDE_PERCENT, text)
    longest = text_size(values, budget.left + 1) + MAX_WIDTH
    budget.take(len(text) + text.count("%") * longest)


def weigh_method(
    budget: Budget, owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """A method of a text. Returns its arguments, those of `join` as a list."""
    values = (*args, *kwargs.values())
    if name in WIDTH_METHODS:
        width = max((abs(value) for value in values if isinstance(value, int)), default=8)
        if width > MAX_WIDTH:
            raise TooMuch(f"the chat template pads to {width}: at most {MAX_WIDTH}")
        budget.take(len(owner) * (width if name == "expandtabs" else 1))
    elif name == "replace" and len(values) >= 2 and isinstance(values[0], type(owner)):
        count: Any = owner.count
        budget.take(len(owner) + count(values[0]) * len(values[1]))
    elif name == "join" and args:
        parts = list(Counted(args[0], budget, 1))
        budget.take(sum(len(part) + len(owner) for part in parts if isinstance(part, str | bytes)))
        return (parts,)
    elif name in ("format", "format_map"):
        budget.take((owner.count("{") if isinstance(owner, str) else 0) * text_size(list(values), budget.left + 1))
    return args


def weighed(budget: Budget, result: Any) -> Any:
    """What a call or a filter has made."""
    if isinstance(result, str | bytes):
        budget.take(len(result))
    elif isinstance(result, list | tuple | dict):
        budget.take(len(result) * PART_CHARS)
    return result


def _refuse_bits(num_bits: int) -> None:
    if num_bits > MAX_INTEGER_BITS:
        raise TooMuch(f"the chat template computes an integer of more than {MAX_INTEGER_BITS} bits")


def refuse_wide(wide: re.Pattern[str], text: str) -> None:
    """Raise TooMuch for a format that is long itself or has widths that could be anything."""
    if len(text) > MAX_FORMAT_CHARS:
        raise TooMuch(f"the chat template has a format of {len(text)} characters: at most {MAX_FORMAT_CHARS}")
    if wide.search(text):
        raise TooMuch(f"the chat template formats with a width that is not written out or above {MAX_WIDTH}")


def refuse_wide_braces(text: str) -> None:
    """The same for what `str.format` reads, where doubled braces are characters."""
    refuse_wide(WIDE_BRACES, text.replace("{{", "").replace("}}", ""))


def weigh_filter(budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the value, a sequence of unknown length as a list."""
    values = (*args, *kwargs.values())
    if name not in TEXT_FREE_FILTERS and not isinstance(value, str):
        budget.take_text_of(value)
    if any(isinstance(given, list | tuple | dict) for given in values):
        budget.take_text_of(values)
    _refuse_wide_filter(name, values)
    if name == "format":
        _weigh_format(budget, str(value), list(values))
    elif name == "replace" and len(values) >= 2:
        text, old, new = str(value), str(values[0]), str(values[1])
        budget.take(len(text) + text.count(old) * len(new))
    elif name == "indent" and values:
        width = values[0] if isinstance(values[0], int) else len(str(values[0]))
        budget.take(str(value).count("\n") * width)
    elif name == "join":
        value = list(Counted(value, budget, 1))
        budget.take(text_size(value, budget.left + 1) + len(value) * len(str(values[0]) if values else ""))
    elif name == "sum" and any(not isinstance(given, int | float | str | None) for given in values):
        raise TooMuch("the chat template sums what are no numbers")
    elif name == "tojson":
        indent = max((given for given in values if isinstance(given, int)), default=0)
        budget.take(text_size(value, budget.left + 1) * (1 + indent))
    elif name in ("list", "sort", "unique", "batch", "slice", "groupby", "reverse") and not isinstance(value, str):
        value = Counted(value, budget, 1) if name not in ("reverse",) else value
    return value


def _refuse_wide_filter(name: str, values: tuple[Any, ...]) -> None:
    if name not in WIDTH_FILTERS:
        return
    for given in values:
        size = abs(given) if isinstance(given, int) else len(given) if isinstance(given, str) else 0
        if size > MAX_WIDTH:
            raise TooMuch(f"the chat template gives {name} a width of {size}: at most {MAX_WIDTH}")
