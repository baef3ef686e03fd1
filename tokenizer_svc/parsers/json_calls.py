"""Reads tool calls that are JSON objects: `{"name": …, "arguments": {…}}`, alone or in a list.

A call is given out when its name is known and its arguments begin; until then it is held back and may turn out to be
none. From then on its arguments are given out as they come, and stay as they were given out whatever follows. Members
other than these two are passed over; where the arguments come first they are held back until the name is there.
"""

from dataclasses import dataclass

from tokenizer_svc.parsers.json_text import loaded, pass_brackets, read_string, read_value
from tokenizer_svc.parsers.parts import Kind, Parts
from tokenizer_svc.parsers.reader import Malformed, Reader, Steps

MAX_NAME_CHARS = 256
ARGUMENT_KEYS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class CallRules:
    """What counts as a call, and where one ends."""

    names: frozenset[str] | None = None
    """Only these functions, and only objects that have arguments and are no tool's definition; None: any name, since
    a marker says that it is a call."""
    closing: str = ""
    """Marker that ends a call's block wherever it stands outside a string; begins with "<"."""

    def check_name(self, name: str) -> str:
        """The name. Raises Malformed for one that no function here has."""
        if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise Malformed("not a name")
        if self.names is not None and name not in self.names:
            raise Malformed("no such function")
        return name


def read_calls(reader: Reader, parts: Parts, rules: CallRules) -> Steps[None]:
    """Read a call or a list of some, behind whitespace. Raises Malformed as long as nothing was given out."""
    if (yield from reader.skip_space()) == "[":
        yield from _read_list(reader, parts, rules)
    else:
        yield from read_call(reader, parts, rules)


def read_call(reader: Reader, parts: Parts, rules: CallRules) -> Steps[None]:
    """Read one call; the next character is its `{`. Raises Malformed as long as nothing was given out.

    What has been read before it belongs to its beginning. Afterwards the reader stands behind the call, or behind its
    arguments where those were malformed.
    """
    yield from reader.expect("{")
    name: str | None = None
    arguments = ""
    while True:
        yield from reader.skip_space()
        key = yield from read_string(reader)
        yield from _colon(reader)
        if key == "name" and name is None:
            name = rules.check_name((yield from read_string(reader)))
        elif key in ARGUMENT_KEYS and not arguments:
            if name is not None and (yield from reader.peek()) == "{":
                parts.begin_call(reader.take(), name)
                if (yield from stream_arguments(reader, parts, rules)):
                    yield from _rest_of_object(reader, parts)
                return
            arguments = _whole_arguments((yield from read_value(reader)))
        elif key == "description" and rules.names is not None:
            raise Malformed("a tool's definition")
        else:
            yield from read_value(reader)
        char = yield from reader.skip_space()
        if char not in (",", "}"):
            raise Malformed("expected a comma or the end of the object")
        reader.position += 1
        if char == "}":
            break
    if name is None or (rules.names is not None and not arguments):
        raise Malformed("no name or no arguments")
    parts.begin_call(reader.take(), name)
    parts.arguments("", arguments or "{}")


def _read_list(reader: Reader, parts: Parts, rules: CallRules) -> Steps[None]:
    """Read `[call, …]`; the next character is its `[`. Raises Malformed as long as nothing was given out."""
    yield from reader.expect("[")
    yield from reader.skip_space()
    yield from read_call(reader, parts, rules)
    while not parts.full:
        if (yield from reader.skip_space()) == "]":
            reader.position += 1
            parts.add(Kind.MARKUP, reader.take())
            return
        if not (yield from another_call(reader, parts, rules, (",",))):
            return


def another_call(reader: Reader, parts: Parts, rules: CallRules, separators: tuple[str, ...] = ()) -> Steps[bool]:
    """Read one more call, behind one that was given out and a separator if there are any: single characters.

    Where none comes: False, nothing read.
    """
    char = yield from reader.skip_space()
    try:
        if separators:
            if char not in separators:
                raise Malformed("expected a separator")
            reader.position += 1
            yield from reader.skip_space()
        yield from read_call(reader, parts, rules)
    except Malformed:
        reader.rewind()
        return False
    return True


def stream_arguments(reader: Reader, parts: Parts, rules: CallRules) -> Steps[bool]:
    """Give out a call's arguments as they come; the next character is their `{`. Whether they ended properly."""

    def give_out() -> None:
        raw = reader.take()
        parts.arguments(raw, raw)

    reader.before_wait = give_out
    whole = yield from pass_brackets(reader, unless=rules.closing)
    reader.before_wait = None
    give_out()
    return whole


def _rest_of_object(reader: Reader, parts: Parts) -> Steps[None]:
    """Read what an object has behind its arguments. What does not belong there is left."""
    while True:
        char = yield from reader.skip_space()
        if char == "}":
            reader.position += 1
            parts.add(Kind.MARKUP, reader.take())
            return
        try:
            yield from reader.expect(",")
            yield from reader.skip_space()
            yield from read_string(reader)
            yield from _colon(reader)
            yield from read_value(reader)
        except Malformed:
            reader.rewind()
            return
        parts.add(Kind.MARKUP, reader.take())


def _colon(reader: Reader) -> Steps[None]:
    yield from reader.skip_space()
    yield from reader.expect(":")
    yield from reader.skip_space()


def _whole_arguments(text: str) -> str:
    """Arguments as JSON text: an object as it stands, one that was written into a string, or none. Raises Malformed."""
    value = loaded(text)
    if value is None:
        return "{}"
    if isinstance(value, str):
        text, value = value, loaded(value)
    if not isinstance(value, dict):
        raise Malformed("arguments are an object")
    return text
