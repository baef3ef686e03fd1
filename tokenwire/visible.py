"""Texts that others chose, made harmless where they meet a log or a terminal. Does not know which of them."""

import re

STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what begins a line, what turns the direction of writing, and halves of characters."""


def visible(text: str, *, keep: str = "") -> str:
    """The text with each such character but those of `keep` written out as an escape of Python's."""
    return STEERING.sub(lambda found: found[0] if found[0] in keep else _written_out(ord(found[0])), text)


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
