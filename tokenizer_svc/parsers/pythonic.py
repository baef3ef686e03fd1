"""Reads Python-like tool calls: `[get_weather(city="Paris", days=3), now()]`, as Llama 4 and some fine-tunes write.

Nothing in them is ever run: each argument must be a literal, which becomes JSON. A call is given out when its function,
one of the request's, and its first argument are there; each argument follows when it is whole. Where a later one is
malformed, what was given out stays, unclosed, and the rest is text.
"""

import ast
import json
import re
import warnings
from typing import Any

from tokenizer_svc.parsers.json_calls import MAX_NAME_CHARS
from tokenizer_svc.parsers.json_text import CLOSES
from tokenizer_svc.parsers.parts import Kind, Parts
from tokenizer_svc.parsers.reader import Malformed, Reader, Steps

_NO_NAME = re.compile(r"[^\w.]")
_NO_KEY = re.compile(r"\W")
_STRUCTURE = re.compile(r"""["'\[\](){},]""")
_ESCAPE_OR = {quote: re.compile(r"\\|" + quote) for quote in ("'", '"', "'''", '"""')}
MAX_LITERAL_ITEMS = 8192
"""Strings, brackets and commas of one argument: Python's parser takes them all at once."""
JSON_NAMES = {"true": True, "false": False, "null": None}
"""What models write that mean JSON."""


class Pythonic:
    """A list of calls as the whole answer; Llama 4 may put it between two markers."""

    openers = ("<|python_start|>",)
    markers = ("<|python_end|>",)
    bare = "["
    closing = ")"
    id_chars = 0

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`."""
        yield from reader.skip_space()
        yield from reader.expect("[")
        if not (yield from _read_call(reader, parts, names)):
            return
        while not parts.full:
            char = yield from reader.skip_space()
            if char == "]":
                reader.position += 1
                parts.add(Kind.MARKUP, reader.take())
                break
            try:
                yield from reader.expect(",")
                if not (yield from _read_call(reader, parts, names)):
                    return
            except Malformed:
                reader.rewind()
                return
        if not parts.full and (yield from reader.skip_space()) == "<" and (yield from reader.accept("<|python_end|>")):
            parts.add(Kind.MARKUP, reader.take())
        reader.rewind()


def _read_call(reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[bool]:
    """Read one call. Raises Malformed as long as it was not given out; False where its arguments are malformed."""
    yield from reader.skip_space()
    name = yield from reader.run(_NO_NAME, MAX_NAME_CHARS)
    if name not in names:
        raise Malformed("no such function")
    yield from reader.skip_space()
    yield from reader.expect("(")
    if (yield from reader.skip_space()) == ")":
        reader.position += 1
        parts.begin_call(reader.take(), name)
        parts.arguments("", "{}")
        return True
    keys: set[str] = set()
    argument = yield from _read_argument(reader, keys)
    parts.begin_call(reader.take(), name)
    parts.arguments("", f"{{{argument}")
    try:
        while True:
            char = yield from reader.skip_space()
            if char == ",":
                reader.position += 1
                char = yield from reader.skip_space()
            elif char != ")":
                raise Malformed("expected a comma or the end of the call")
            if char == ")":
                reader.position += 1
                parts.arguments(reader.take(), "}")
                return True
            argument = yield from _read_argument(reader, keys)
            parts.arguments(reader.take(), f", {argument}")
    except Malformed:
        reader.rewind()
        return False


def _read_argument(reader: Reader, keys: set[str]) -> Steps[str]:
    """Read `key=literal`; returns it as a member of a JSON object. Adds to `keys`, where it may not be yet."""
    key = yield from _read_key(reader)
    if key in keys:
        raise Malformed("an argument twice")
    keys.add(key)
    value = yield from _read_literal(reader)
    return f"{json.dumps(key, ensure_ascii=False)}: {value}"


def _read_key(reader: Reader) -> Steps[str]:
    """Read `key=`."""
    key = yield from reader.run(_NO_KEY, MAX_NAME_CHARS)
    yield from reader.skip_space()
    yield from reader.expect("=")
    if not key.isidentifier() or (yield from reader.peek()) == "=":
        raise Malformed("expected an argument's name")
    return key


def _read_literal(reader: Reader) -> Steps[str]:
    """Read up to the comma or bracket that ends an argument; its value as JSON text. Raises Malformed."""
    mark = reader.mark()
    open_brackets: list[str] = []
    num_items = 0
    while True:
        found = _STRUCTURE.search(reader.text, reader.position, reader.end)
        if found is None:
            reader.position = reader.end
            if not (yield from reader.wait()):
                raise Malformed("an argument without an end")
            continue
        reader.position, char = found.start(), found.group()
        num_items += 1
        if num_items > MAX_LITERAL_ITEMS:
            raise Malformed("too many items")
        if char in "\"'":
            yield from _pass_string(reader, char)
        elif char in CLOSES:
            open_brackets.append(CLOSES[char])
            reader.position += 1
        elif not open_brackets and char in ",)":
            return json_of(reader.since(mark))
        elif char == ",":
            reader.position += 1
        elif not open_brackets or open_brackets.pop() != char:
            raise Malformed("a bracket too many")
        else:
            reader.position += 1


def _pass_string(reader: Reader, quote: str) -> Steps[None]:
    """Read a Python string, plain or of three quotes, from its opening quote to its end."""
    if (yield from reader.accept(quote * 3)):
        quote *= 3
    else:
        reader.position += 1
    while True:
        found = _ESCAPE_OR[quote].search(reader.text, reader.position, reader.end)
        if found is None:
            reader.position = max(reader.position, reader.end - len(quote) + 1)
            if not (yield from reader.wait()):
                raise Malformed("a string without an end")
            continue
        reader.position = found.end()
        if found.group() == quote:
            return
        if (yield from reader.peek()):
            reader.position += 1


def json_of(literal: str) -> str:
    """A Python literal as JSON text; `true`, `false` and `null` may stand in it. Raises Malformed for anything else."""
    try:
        with warnings.catch_warnings():  # an escape that Python does not know is a warning about somebody else's code
            warnings.simplefilter("ignore")
            value = _value_of(ast.parse(literal.strip(), mode="eval").body)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed(f"no literal ({type(error).__name__})") from None
    return text


def _value_of(node: ast.expr) -> Any:
    """The value of a literal's node. Raises ValueError for what is none, or has no place in JSON."""
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in JSON_NAMES:
            return JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value_of(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [_value_of(key) if key is not None else None for key in keys]
            if not all(isinstance(name, str) for name in names):
                raise ValueError("keys are strings")
            return dict(zip(names, map(_value_of, values), strict=True))
    raise ValueError("no literal")
