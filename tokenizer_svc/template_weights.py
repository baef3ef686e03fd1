"""The methods, operators and comparisons that a chat template may use, each with the most that it makes and looks at.

A weight is charged before the work is done. What is not in these tables is not there for a template. Knows Python's
types; nothing of Jinja, but for its safe text, which makes others longer when it takes them in.
"""

import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from tokenizer_svc.json_size import CONTAINERS, DICT_KEYS, text_pieces
from tokenizer_svc.template_budget import PART_CHARS, QUOTED_CHARS, Budget, TooMuch

SCANNED_CHARS = 16
"""Characters that are compared with others, for each that is made."""
ESCAPED_CHARS = 6
"""What a character of a text may become in safe text."""
CASED_CHARS = 3
"""What a character may become in another case."""
MAX_WIDTH = 1_000
"""Of padding, indents and decimals."""
MAX_INTEGER_BITS = 4_096
MAX_KEY = 2**20
"""Of the numbers that are keys of a template's own dictionary: larger ones could be chosen to meet one another."""
MAX_KEY_CHARS = 4_096
"""Of a text that is looked up or names an argument, and may be told in an error."""
MAX_FORMAT_CHARS = 10_000
WIDE_PERCENT = re.compile(r"%[^a-zA-Z%(]*(\d{4}|\*)")
"""A width or a number of places above 999 in a format, or one that is not written out.

Each search here is linear: no two places where it may begin share the characters that it repeats over.
"""
WIDE_BEHIND_NAME = re.compile(r"\)[^a-zA-Z%)]*(\d{4}|\*)")
WIDE_BRACES = re.compile(r"\{[^{}]*(\d{4}|\{)|\{[^{}:!]*[.\[]")
"""The same, or a way into a value."""
WIDE = f"the chat template formats with a width that is not written out or above {MAX_WIDTH}, or with a part of a value"
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
BLANKS = (
    LINE_ENDS + "\t\x1f \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
ORDERS = ("lt", "lteq", "gt", "gteq")


def looked_through(text: str, given: list[Any]) -> int:
    """Each character once, and those that are looked for."""
    return (len(text) + _longest(given)) // SCANNED_CHARS


def copied(text: str, given: list[Any]) -> int:
    """A text as long."""
    return len(text) + looked_through(text, given)


def compared(text: str, given: list[Any]) -> int:
    """A text as long, each of whose characters may be compared with each that is given."""
    return len(text) + len(text) * max(1, _longest(given)) // SCANNED_CHARS


def cased(text: str, given: list[Any]) -> int:
    """A text in another case."""
    return CASED_CHARS * len(text)


def replaced(text: str, given: list[Any]) -> int:
    """`replace(old, new)`. Raises TypeError for other values: safe text would make a text of them."""
    old, new = given[:2]
    if not (isinstance(old, str) and isinstance(new, str)):
        raise TypeError("replace() takes texts")
    return copied(text, [old]) + text.count(old) * len(new)


def split_at(text: str, given: list[Any]) -> int:
    """`split`."""
    separator = next((value for value in given if isinstance(value, str)), None)
    num_parts = text.count(separator) if separator else sum(map(text.count, BLANKS))
    return copied(text, given) + (1 + num_parts) * PART_CHARS


def split_from_behind(text: str, given: list[Any]) -> int:
    """`rsplit`, which may compare each character with each of the separator's."""
    return compared(text, given) + split_at(text, given)


def split_in_lines(text: str, given: list[Any]) -> int:
    """`splitlines`."""
    return copied(text, given) + num_lines(text) * PART_CHARS


def num_lines(text: str) -> int:
    """Lines that `splitlines` makes, at most."""
    return 1 + sum(map(text.count, LINE_ENDS))


def formatted(text: str, given: Any) -> int:
    """`format`, whose values have been walked through once."""
    _refuse_long_format(text)
    if WIDE_BRACES.search(text.replace("{{", "").replace("}}", "")):  # doubled braces are characters
        raise TooMuch(WIDE)
    return len(text) + text.count("{") * (_text_size(given) + (MAX_WIDTH if ":" in text else 0))


def formatted_by_percent(text: str, given: Any) -> int:
    """`text % given`, whose values have been walked through once."""
    _refuse_long_format(text)
    refuse_wide_percent(text)
    return len(text) + text.count("%") * (_text_size(given) + MAX_WIDTH)


def joined(text: str, given: list[Any]) -> int:
    """`join` of a list, whose values have been walked through once. Safe text makes a text of those that are none."""
    return sum(len(text) + (len(part) if isinstance(part, str) else _text_size(part)) for part in given[0])


TEXT_METHODS: dict[str, Callable[[str, list[Any]], int]] = {
    **dict.fromkeys(("count", "endswith", "find", "index", "startswith"), looked_through),
    **dict.fromkeys(("isalnum", "isalpha", "isdigit", "islower", "isnumeric", "isspace", "isupper"), looked_through),
    **dict.fromkeys(("partition", "removeprefix", "removesuffix"), copied),
    **dict.fromkeys(("lstrip", "rfind", "rpartition", "rstrip", "strip"), compared),
    **dict.fromkeys(("capitalize", "lower", "title", "upper"), cased),
    "format": formatted,
    "join": joined,
    "replace": replaced,
    "rsplit": split_from_behind,
    "split": split_at,
    "splitlines": split_in_lines,
}
LIST_METHODS = ("count", "index")
DICT_METHODS = ("get", "items", "keys", "values")


def weigh_method(budget: Budget, owner: Any, name: str, args: tuple[Any, ...], named: list[Any]) -> Any:
    """A method of a text, list or dictionary. Returns its arguments, those of `join` as a list. Raises TooMuch."""
    if isinstance(owner, dict):
        for key in args[:1]:
            refuse_as_key(key)
    elif not isinstance(owner, str):
        budget.walk(owner)
        budget.take_text_of(args)  # which an error tells
    else:
        if name == "join":
            args = tuple(budget.listed(value) for value in args)
        given = [*args, *named]
        if given:
            budget.walk(given)
        budget.take(TEXT_METHODS[name](owner, given) * growth(owner))
    return args


def weigh_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """`left operator right`. Raises TooMuch."""
    if operator == "%" and isinstance(left, str):
        budget.walk(right)
        budget.take(formatted_by_percent(left, right) * growth(left))
    elif operator == "+":
        if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            budget.take((len(left) + len(right)) * growth(left, right))
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int):
                budget.take(len(one) * max(0, other))
    elif isinstance(left, CONTAINERS) or isinstance(right, CONTAINERS):
        raise TypeError(f"{operator} is for numbers")
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        refuse_bits(left.bit_length() * abs(right))


def weigh_comparison(budget: Budget, operator: str, left: Any, right: Any) -> Any:
    """`left operator right`, by Jinja's names of operators. Returns `right`, an iterator as a list. Raises TooMuch."""
    if operator in ("in", "notin"):
        if hasattr(right, "__next__"):
            right = budget.listed(right)
        if isinstance(right, (dict, DICT_KEYS)):
            refuse_as_key(left)
        elif isinstance(right, str) and isinstance(left, str):
            budget.take(looked_through(right, [left]))
        else:
            budget.walk((left, right))
    elif isinstance(left, str) and isinstance(right, str):
        budget.take(min(len(left), len(right)) // SCANNED_CHARS)
    elif isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
        if operator in ORDERS:
            raise TooMuch("the chat template puts in order what are no texts or numbers")
        budget.walk(left)
    return right


def refuse_as_key(key: Any) -> None:
    """Raise TooMuch for what takes unknown time to find in a dictionary."""
    if isinstance(key, CONTAINERS):
        raise TooMuch("the chat template looks for something by what is no text and no number")


def refuse_as_new_key(key: Any) -> None:
    """Raise TooMuch for what could make a dictionary slow."""
    if not (key is None or isinstance(key, str) or (isinstance(key, int) and -MAX_KEY < key < MAX_KEY)):
        raise TooMuch("the chat template makes a dictionary whose keys are no texts and no small numbers")


def refuse_bits(num_bits: int) -> None:
    """Raise TooMuch for a whole number that long."""
    if num_bits > MAX_INTEGER_BITS:
        raise TooMuch(f"the chat template computes an integer of more than {MAX_INTEGER_BITS} bits")


def refuse_wide_percent(text: str) -> None:
    """Raise TooMuch for a format by `%` that has widths that could be anything."""
    named = text.find("%(")
    if WIDE_PERCENT.search(text) or (named >= 0 and WIDE_BEHIND_NAME.search(text, named)):
        raise TooMuch(WIDE)


def growth(*texts: Any) -> int:
    """How many times as long texts may become that are put together with these: safe text escapes what it takes in."""
    return ESCAPED_CHARS if any(isinstance(text, Markup) for text in texts) else 1


def _refuse_long_format(text: str) -> None:
    if len(text) > MAX_FORMAT_CHARS:
        raise TooMuch(f"the chat template has a format of {len(text)} characters: at most {MAX_FORMAT_CHARS}")


def _text_size(value: Any) -> int:
    """Characters of a value as text, at most, where it has been walked through."""
    return QUOTED_CHARS * sum(text_pieces(value))


def _longest(given: list[Any]) -> int:
    return max((len(value) for value in given if isinstance(value, str)), default=0)
