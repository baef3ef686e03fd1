"""What the output must look like, in the words of vLLM's `structured_outputs` and of `guided_decoding` before it."""

import json
from collections.abc import Callable
from typing import Any

from gateway.http.body import invalid
from tokenwire import constraints
from tokenwire.constraints import Constraint

NAMES = ("structured_outputs", "guided_decoding")


def _schema(value: Any) -> Constraint | None:
    if isinstance(value, dict):
        return constraints.json_schema(json.dumps(value))
    return constraints.json_schema(value) if isinstance(value, str) else None


def _text(make: Callable[[str], Constraint]) -> Callable[[Any], Constraint | None]:
    return lambda value: make(value) if isinstance(value, str) else None


def _choice(value: Any) -> Constraint | None:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return constraints.choice(*value)
    return None


FORMS: dict[str, tuple[Callable[[Any], Constraint | None], str]] = {
    "json": (_schema, "a JSON schema, as an object or as text"),
    "regex": (_text(constraints.regex), "a text"),
    "choice": (_choice, "a list of texts"),
    "grammar": (_text(constraints.ebnf), "a text"),
    "json_object": (lambda value: constraints.JSON_OBJECT if value is True else None, "true"),
}
"""How each form is read, which gives None for another type, and what is allowed."""


def constraint_of(name: str, value: Any) -> Constraint:
    """The one form that is given; the object may come as JSON text. Raises InvalidRequest."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid(name, f"it is not JSON: {error}", reason="MALFORMED_JSON") from None
    if not isinstance(value, dict):
        raise invalid(name, f"{value!r:.40} is not allowed: an object with one of {', '.join(FORMS)}")
    given = {form: meaning for form, meaning in value.items() if meaning is not None and meaning is not False}
    if len(given) != 1:
        raise invalid(name, f"it has {', '.join(given) or 'nothing'}: one of {', '.join(FORMS)} is needed")
    ((form, meaning),) = given.items()
    if form not in FORMS:
        raise invalid(f"{name}.{form}", "there is no such form", reason="UNKNOWN_PARAMETER")
    read, allowed = FORMS[form]
    constraint = read(meaning)
    if constraint is None:
        raise invalid(f"{name}.{form}", f"{meaning!r:.40} is not allowed: {allowed}")
    return constraint
