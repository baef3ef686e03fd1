"""What is compiled and matched: forms as people send them, small and large. Knows no library."""

import json
from typing import Any, NamedTuple

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "email": {"type": "string", "pattern": "^[a-z.]{1,20}@[a-z]{1,20}\\.(com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
JSON_GBNF = r"""root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}"
array ::= "[" ws (value ("," ws value)*)? "]"
string ::= "\"" ([^"\\\x00-\x1f] | "\\" ["\\/bfnrt])* "\""
number ::= "-"? [0-9]+ ("." [0-9]+)?
ws ::= [ \n]{0,4}
"""


class Case(NamedTuple):
    """One form."""

    name: str
    form: str
    """json_schema, regex or ebnf."""
    text: str


CASES = (
    Case("any object", "json_schema", json.dumps({"type": "object"})),
    Case("a person", "json_schema", json.dumps(PERSON)),
    Case("a list of persons", "json_schema", json.dumps({"type": "array", "items": PERSON, "minItems": 5})),
    Case(
        "300 properties", "json_schema",
        json.dumps({"type": "object", "properties": {f"field{n}": {"type": "string"} for n in range(300)}}),
    ),
    Case("2,000 words", "json_schema", json.dumps({"enum": [f"value number {n}" for n in range(2000)]})),
    Case("a date", "regex", r"[0-9]{4}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])T[0-9]{2}:[0-9]{2}"),
    Case("words", "regex", r"([A-Z][a-z]{1,12} ){20}"),
    Case("JSON as EBNF", "ebnf", JSON_GBNF),
)  # fmt: skip
