"""Finds where in a JSON schema the library's complaint comes from, as it names no place itself.

The schema's parts are tried one by one: the place is the innermost part that is refused with the same words when it
stands alone, references looked up where they were. Knows which keywords hold schemas; does not know what any keyword
means.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

ONE_SCHEMA = (
    "items",
    "additionalProperties",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
)
MANY_SCHEMAS = ("prefixItems", "items", "anyOf", "allOf", "oneOf")
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
DEFINITIONS = ("$defs", "definitions", "$schema", "$id")
PART = "tokenwire-part"
"""Where a part stands in the schema that is tried."""
MAX_SEARCH_S = 0.3
"""After that the innermost place found so far is given."""
TELLTALE = {"regex": "pattern", "format": "format", "Pointer": "$ref", "Resource": "$ref"}
"""Words of messages that name no keyword, and the keyword they are about."""
KEYWORD = re.compile(r'Unimplemented keys: \["([^"]+)"|for \'([^\']+)\'|^([a-zA-Z$]+) must be|^(oneOf) constraints')


def place_of(schema: dict[str, Any], message: str, refuses: Callable[[dict[str, Any]], str]) -> str:
    """A JSON pointer to where `message` comes from; "" is the root.

    `refuses`: a schema's error, "" where there is none. May take `MAX_SEARCH_S` and one more call of it.
    """
    until_s = time.monotonic() + MAX_SEARCH_S
    pointer, part = "", schema
    going = True
    while going:
        going = False
        for step, inner in _parts(part):
            if time.monotonic() > until_s:
                return pointer + _keyword(part, message)
            alone = {key: schema[key] for key in DEFINITIONS if key in schema} | {"$ref": f"#/{PART}", PART: inner}
            if refuses(alone) == message:
                pointer, part, going = f"{pointer}/{step}", inner, True
                break
    return pointer + _keyword(part, message)


def _keyword(part: Any, message: str) -> str:
    """The keyword that the message names, where the part has it."""
    match = KEYWORD.search(message)
    name = next(filter(None, match.groups()), "") if match else ""
    if not name:
        name = next((keyword for words, keyword in TELLTALE.items() if words in message), "")
    return f"/{_escaped(name)}" if name and isinstance(part, dict) and name in part else ""


def _parts(part: Any) -> Iterator[tuple[str, Any]]:
    """The schemas in a schema, each with its pointer from there."""
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key in NAMED_SCHEMAS and isinstance(value, dict):
            for name, inner in value.items():
                yield f"{key}/{_escaped(name)}", inner
        elif key in MANY_SCHEMAS and isinstance(value, list):
            for index, inner in enumerate(value):
                yield f"{key}/{index}", inner
        elif key in ONE_SCHEMA:
            yield key, value


def _escaped(name: str) -> str:
    """A name as a JSON pointer has it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
