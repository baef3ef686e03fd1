"""Reads JSON as models write it, by where strings and brackets end; what is between them is not judged.

Source: RFC 8259. More is let through than it allows, such as a bare line break in a string: what a model got wrong is
for the client to see.
"""

import json
import re
from typing import Any

from tokenizer_svc.parsers.reader import Malformed, Reader, Steps

_QUOTE_OR_ESCAPE = re.compile(r'["\\]')
_STRUCTURE = re.compile(r'["\[\]{}<]')
_NO_SCALAR = re.compile(r"[^-+.\w]")
MAX_SCALAR_CHARS = 4096
CLOSES = {"{": "}", "[": "]", "(": ")"}


def read_string(reader: Reader) -> Steps[str]:
    """Read a string; returns what it says. Raises Malformed."""
    mark = reader.mark()
    if (yield from reader.peek()) != '"' or not (yield from _pass_string(reader)):
        raise Malformed("expected a string")
    value = loaded(reader.since(mark))
    if not isinstance(value, str):
        raise Malformed("expected a string")
    return value


def read_value(reader: Reader) -> Steps[str]:
    """Read any value; returns it as it stands. Raises Malformed where none comes or it does not end."""
    mark = reader.mark()
    char = yield from reader.peek()
    if char == '"':
        whole = yield from _pass_string(reader)
    elif char in ("{", "["):
        whole = yield from pass_brackets(reader)
    else:
        whole = bool((yield from reader.run(_NO_SCALAR, MAX_SCALAR_CHARS)))
    if not whole:
        raise Malformed("expected a value")
    return reader.since(mark)


def pass_brackets(reader: Reader, unless: str = "") -> Steps[bool]:
    """Read from an opening bracket to the one that closes it; True then.

    False, with everything up to there read, where the text ends, a bracket closes what is not open, or `unless`, which
    begins with "<", comes outside a string.
    """
    open_brackets: list[str] = []
    while True:
        found = _STRUCTURE.search(reader.text, reader.position, reader.end)
        if found is None:
            reader.position = reader.end
            if not (yield from reader.wait()):
                return False
            continue
        reader.position, char = found.start(), found.group()
        if char == '"':
            if not (yield from _pass_string(reader)):
                return False
            continue
        if char == "<":
            if unless and (yield from reader.follows(unless)):
                return False
        elif char in CLOSES:
            open_brackets.append(CLOSES[char])
        elif open_brackets[-1] != char:
            return False
        else:
            open_brackets.pop()
        reader.position += 1
        if not open_brackets:
            return True


def loaded(text: str) -> Any:
    """The value of JSON text. Raises Malformed, also for what UTF-8 cannot say."""
    try:
        value = json.loads(text, strict=False)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # a UnicodeEncodeError is a ValueError
        raise Malformed(str(error)) from None
    return value


def _pass_string(reader: Reader) -> Steps[bool]:
    """Read a string from its opening quote to the closing one; False where the text ends first."""
    reader.position += 1
    while True:
        found = _QUOTE_OR_ESCAPE.search(reader.text, reader.position, reader.end)
        if found is None:
            reader.position = reader.end
            if not (yield from reader.wait()):
                return False
            continue
        reader.position = found.end()
        if found.group() == '"':
            return True
        if not (yield from reader.peek()):
            return False
        reader.position += 1
