"""About how long JSON-like values are as text, without making it."""

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
