"""About how long JSON-like values are as text, without making it, and how deep they are nested."""

from collections.abc import Iterator
from typing import Any

OTHER_CHARS = 24
"""A number, a boolean, null, or what is no JSON. More for whole numbers that are longer."""
BITS_PER_DIGIT = 3
DICT_KEYS: Any = type({}.keys())
DICT_ITEMS: Any = type({}.items())
CONTAINERS: Any = (dict, list, tuple, set, frozenset, DICT_KEYS, type({}.values()), DICT_ITEMS)
"""What JSON-like values are in, and the views of a dictionary."""


def text_pieces(value: Any) -> Iterator[int]:
    """Characters of a value as text, at least, one number for each value in it. Endless for one that holds itself.

    A container counts one for each of its places, so that the time this takes is bounded by the sum too.
    """
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str | bytes):
            yield len(value)
        elif isinstance(value, CONTAINERS):
            yield 2 + len(value)
            pending.extend(value)
            if isinstance(value, dict):
                pending.extend(value.values())
        elif isinstance(value, int):
            yield max(OTHER_CHARS, value.bit_length() // BITS_PER_DIGIT)
        else:
            yield OTHER_CHARS


def text_size(value: Any, limit: int) -> int:
    """Characters of a value as text, at least; at `limit` counting ends. One that holds itself reaches it."""
    total = 0
    for size in text_pieces(value):
        total += size
        if total >= limit:
            break
    return total


def nested_beyond(value: Any, most: int) -> bool:
    """Whether a JSON value has containers within one another at more than `most` levels, itself counted."""
    level = [value]
    for _ in range(most + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True
