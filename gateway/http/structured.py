"""What an answer must look like, as HTTP clients say it: OpenAI's `response_format`, and vLLM's `structured_outputs`.

Sources: https://platform.openai.com/docs/api-reference/chat/create (response_format), which names what it wants by
type, and https://docs.vllm.ai/en/latest/features/structured_outputs/ for what OpenAI's API has no word for. Does not
know what a schema, an expression or a grammar means: the model tier finds that out.
"""

import json
from typing import Annotated, Any

from gateway.http.body import Body, invalid, refuse_extras
from gateway.http.bounds import MAX_KEYS, at_most
from tokenwire.constraints import JSON_OBJECT, MAX_CHOICES, Constraint, choice, ebnf, json_schema, regex

UNBUILT_OUTPUTS: dict[str, tuple[Any, ...]] = {
    "disable_additional_properties": (None, False),
    "disable_any_whitespace": (None, False),
    "disable_fallback": (None, False, True),
    "structural_tag": (None,),
    "whitespace_pattern": (None,),
}
"""vLLM's other words; the values that ask for nothing that is not so anyway are taken."""


class JsonSchemaFields(Body):
    """A named schema."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], at_most(MAX_KEYS)] | bool | None = None
    strict: bool | None = None
    """Whatever it says: the schema is obeyed."""

    model_config = {**Body.model_config, "alias_generator": lambda name: name.rstrip("_")}


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: str
    json_schema: JsonSchemaFields | None = None


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: one of these."""

    json_: Annotated[dict[str, Any], at_most(MAX_KEYS)] | str | bool | None = None
    """A JSON schema, as an object or as text."""
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], at_most(MAX_CHOICES)] | None = None
    grammar: str | None = None
    """EBNF."""

    model_config = {**Body.model_config, "alias_generator": lambda name: name.rstrip("_")}


def constraint_of(response_format: ResponseFormat | None, outputs: StructuredOutputs | None) -> Constraint | None:
    """What both say together; None for free text. Raises InvalidRequest naming the field."""
    asked = [found for found in (_of_format(response_format), _of_outputs(outputs)) if found is not None]
    if len(asked) > 1:
        raise invalid("structured_outputs", "is not allowed beside response_format: each says what the output is")
    return asked[0] if asked else None


def _of_format(given: ResponseFormat | None) -> Constraint | None:
    if given is None:
        return None
    refuse_extras(given, {}, prefix="response_format.")
    if given.type not in ("text", "json_object", "json_schema"):
        allowed = "'text', 'json_object' or 'json_schema'"
        raise invalid("response_format.type", f"{given.type!r:.80} is not allowed: {allowed}")
    if given.type == "json_schema" and given.json_schema is None:
        raise invalid("response_format.json_schema", "is required with type 'json_schema'")
    if given.json_schema is not None and given.type != "json_schema":
        raise invalid("response_format.json_schema", f"goes with type 'json_schema', not {given.type!r}")
    if given.json_schema is None:
        return JSON_OBJECT if given.type == "json_object" else None
    refuse_extras(given.json_schema, {}, prefix="response_format.json_schema.")
    if given.json_schema.schema_ is None:
        raise invalid("response_format.json_schema.schema", "is required")
    return json_schema(_text(given.json_schema.schema_, "response_format.json_schema.schema"))


def _of_outputs(given: StructuredOutputs | None) -> Constraint | None:
    if given is None:
        return None
    refuse_extras(given, UNBUILT_OUTPUTS, prefix="structured_outputs.")
    found: list[Constraint] = []
    if given.json_ is not None:
        text = given.json_ if isinstance(given.json_, str) else _text(given.json_, "structured_outputs.json")
        found.append(json_schema(text))
    if given.json_object:
        found.append(JSON_OBJECT)
    if given.regex is not None:
        found.append(regex(given.regex))
    if given.choice is not None:
        found.append(choice(*given.choice))
    if given.grammar is not None:
        found.append(ebnf(given.grammar))
    if len(found) != 1:
        allowed = "exactly one of json, json_object, regex, choice and grammar"
        raise invalid("structured_outputs", f"{len(found)} forms are not allowed: {allowed}")
    return found[0]


def _text(schema: dict[str, Any] | bool, where: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise invalid(where, f"is not JSON ({error})") from None
