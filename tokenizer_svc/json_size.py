"""About how long JSON-like values are as text, without making it, and how deep they are nested."""

from typing import Any

OTHER_CHARS = 24
"""A number, a boolean, null, or what is no JSON."""


def text_size(value: Any, limit: int) -> int:
    """Characters of a value as text, at least; at `limit` counting ends. A value that holds itself reaches the limit.

    A container counts one for each of its places, so that the time this takes is bounded by `limit` too.
    """
    total = 0
    pending = [value]
    while pending and total < limit:
        value = pending.pop()
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, dict):
            total += 2 + len(value)
            pending.extend(value.keys())
            pending.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            total += 2 + len(value)
            pending.extend(value)
        else:
            total += OTHER_CHARS
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
