"""A constraint as a grammar in the library's own form, before it is compiled.

Every token that keeps to the grammar may come, also where the text that follows is certain: how a text is cut into
tokens is left to the model. Between JSON's parts whitespace is bounded, so that no model can go on with it for ever.
Knows nothing of vocabularies.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher

from model_svc.grammar.gbnf import escaped, is_gbnf, lark_of
from tokenwire.constraints import CallForm, Calls, Constraint, ConstraintForm, FreeText
from tokenwire.errors import FieldViolation
from tokenwire.sampling import refuse

HEAD = '%llguidance {"no_forcing": true}\nstart: '
JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \t\n\r]{1,40}",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}
"""How schemas are compiled: what is not supported is refused, never passed over. In the request such options are not
looked at."""
NO_TOKENS: Mapping[str, int] = {}
MAX_PROPERTIES = 1000
"""Of one object: the time to compile it grows with their square."""
MAX_DIGITS = 1000
"""Of one integer: Python reads no more than 4,300."""
OPTIONS_KEY = "x-guidance"
"""Where the library looks for them, in the schema's root."""


def field_of(form: ConstraintForm) -> str:
    """Where a constraint's text stands in a request."""
    name = "choice.texts" if form is ConstraintForm.CHOICE else form.value
    return f"options.constraint.{name}"


def grammar_of(constraint: Constraint, special: Mapping[str, int] = NO_TOKENS) -> str:
    """The constraint as a grammar, one string. Raises InvalidRequest for what is no JSON, and an EBNF that is none.

    `special`: the vocabulary's special tokens, which a marker of what comes before the form may be.
    """
    body = _body(constraint) if constraint.calls is None else _calls_body(constraint.calls, special)
    return _grammar(body) if constraint.before is None else _grammar(body, head_of(constraint.before, special))


def schema_of_call(form: CallForm) -> dict[str, Any]:
    """What a call's arguments must be: an object. Raises InvalidRequest for what is no JSON, or no schema."""
    schema = parsed_schema(form.schema_json, form.field or "options.constraint.calls.forms.schema_json")
    return {"type": "object", **schema}


def _calls_body(calls: Calls, special: Mapping[str, int]) -> dict[str, Any]:
    more = f" ({_words(calls.separator, special)} call){{0,{calls.max_calls - 1}}}" if calls.max_calls > 1 else ""
    lines = [f"start: call{more}", "call: " + " | ".join(f"call_{index}" for index in range(len(calls.forms)))]
    for index, form in enumerate(calls.forms):
        schema = json.dumps({**schema_of_call(form), OPTIONS_KEY: JSON_OPTIONS}, ensure_ascii=False)
        before, after = _words(form.before, special), _words(form.after, special)
        lines.append(f"call_{index}: {before} %json {schema} {after}")
    return {"name": "body", "lark_grammar": "\n".join([*lines, ""])}


def _words(text: str, special: Mapping[str, int]) -> str:
    """A text as Lark has it, special tokens in it by their ids."""
    names = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True) if name)
    pieces = re.split(f"({names})", text) if names else [text]
    words = [f"<[{special[p]}]>" if p in special else json.dumps(p, ensure_ascii=False) for p in pieces if p]
    return " ".join(words) or '""'


def head_of(before: FreeText, special: Mapping[str, int]) -> str:
    """The main rule of a form behind free text: up to the first closing marker, and a few line ends."""
    lines = [HEAD + ("free SPACE? @body" if before.is_open else "(opening free SPACE?)? @body")]
    if not before.is_open:
        lines.append(f"opening: {_words(before.opening, special)}")
    if before.closing in special:
        lines += [f"free: TEXT {_words(before.closing, special)}", r"TEXT: /[\s\S]*/"]
    else:
        lines += [f"free[lazy]: TEXT {_words(before.closing, special)}", r"TEXT: /[\s\S]*/"]
    return "\n".join([*lines, r"SPACE: /[ \t\r\n]{1,8}/", ""])


def _body(constraint: Constraint) -> dict[str, Any]:
    if constraint.form in (ConstraintForm.JSON_SCHEMA, ConstraintForm.JSON_OBJECT):
        return _schema_body(schema_of(constraint))
    if constraint.form is ConstraintForm.REGEX:
        document = json.loads(LLMatcher.grammar_from_regex(constraint.text))
        return {"name": "body", "lark_grammar": document["grammars"][0]["lark_grammar"]}
    if constraint.form is ConstraintForm.CHOICE:
        texts = "|".join("".join(map(escaped, text)) for text in constraint.texts)
        return {"name": "body", "lark_grammar": f"start: /{texts}/"}
    text = lark_of(constraint.text) if is_gbnf(constraint.text) else constraint.text
    return {"name": "body", "lark_grammar": text}


def grammar_of_schema(schema: dict[str, Any]) -> str:
    """A JSON schema, an object, as a grammar."""
    return _grammar(_schema_body(schema))


def _schema_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": "body", "json_schema": {**schema, OPTIONS_KEY: JSON_OPTIONS}}


def schema_of(constraint: Constraint) -> dict[str, Any]:
    """The JSON schema as an object. Raises InvalidRequest for what is no JSON, or no schema."""
    if constraint.form is ConstraintForm.JSON_OBJECT:
        return {"type": "object"}
    return parsed_schema(constraint.text, field_of(constraint.form))


def parsed_schema(text: str, field: str) -> dict[str, Any]:
    """A JSON schema as an object. Raises InvalidRequest for what is no JSON, no schema, or too large."""
    try:
        schema = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_short)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        refuse([FieldViolation(field, f"not JSON: {why}")])
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        refuse([FieldViolation(field, f"{text[:80]!r} is not a schema: a JSON object is needed")])
    for pointer, properties in _objects_in(schema):
        if len(properties) > MAX_PROPERTIES:
            description = (
                f"at {pointer}: {len(properties)} properties are too many: at most {MAX_PROPERTIES} in one object"
            )
            refuse([FieldViolation(field, description)])
    return dict(schema)


def _objects_in(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `properties` of a schema with where it stands."""
    stack = [("", schema)]
    while stack:
        pointer, part = stack.pop()
        if isinstance(part, dict):
            if isinstance(part.get("properties"), dict):
                yield f"{pointer}/properties", part["properties"]
            stack.extend((f"{pointer}/{key}", value) for key, value in part.items() if isinstance(value, dict | list))
        elif isinstance(part, list):
            stack.extend((f"{pointer}/{i}", value) for i, value in enumerate(part) if isinstance(value, dict | list))


def _grammar(body: dict[str, Any], head: str = HEAD + "@body") -> str:
    return json.dumps({"grammars": [{"name": "main", "lark_grammar": head}, body]}, ensure_ascii=False)


def _no_number(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _short(number: str) -> int:
    if len(number) > MAX_DIGITS:
        raise ValueError(f"a number of {len(number)} digits is too long: at most {MAX_DIGITS}")
    return int(number)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:20]} is too large for a number")
    return value
