"""A body costs no more than its bytes, however much of it is wrong."""

import asyncio
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from gateway.http.body import SHOWN, Body, body_of, read_body
from gateway.http.bounds import MAX_DOCUMENTS, MAX_KEYS, MAX_MESSAGES, MAX_NOTES, MAX_PARTS, MAX_TOOLS
from gateway.http.chat_messages import ChatMessageFields, message_of
from gateway.http.fields import prompts_of
from gateway.http.generate import GenerateBody
from gateway.http.openai_chat import ChatBody
from gateway.http.openai_completions import CompletionBody
from gateway.http.openapi import BODIES, description
from gateway.kserve.parameters import InferFields
from tests.fakes.live_gateway import gateway_over_fake
from tokenwire.constraints import MAX_CHOICES
from tokenwire.errors import InvalidRequest
from tokenwire.sampling import (
    MAX_ALLOWED_TOKENS,
    MAX_BANNED_SEQUENCE_TOKENS,
    MAX_BANNED_SEQUENCES,
    MAX_BIASED_TOKENS,
    MAX_STOP_TOKEN_IDS,
)

MANY = 20_000
USER = {"role": "user", "content": "a"}
BY_SETTING = {"prompt", "inputs", "input"}
"""Their number is bounded by a setting or by what an answer holds."""


def read(body: dict[str, Any], model: type[Body]) -> Body:
    """As it comes over HTTP."""
    content = json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    settings = SimpleNamespace(max_body_bytes=2**22, body_timeout_s=60.0)
    return asyncio.run(read_body(Request(scope, receive), model, settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("messages", [1] * MAX_MESSAGES, "messages[0]"),
        ("messages", [{}] * MAX_MESSAGES, "messages[0].role"),
        ("messages", [USER] * (MAX_MESSAGES + 1), "messages"),
        ("messages", [1] * MANY, "messages[0]"),
        ("messages", [{**USER, "tool_calls": [1] * MANY}], "messages[0].tool_calls[0]"),
        ("tools", [1] * MANY, "tools[0]"),
        ("tools", [{"type": "function"}] * (MAX_TOOLS + 1), "tools"),
        ("tools", [{"type": "function", "function": {"name": "a", "parameters": {str(i): i for i in range(MANY)}}}],
         "tools[0].function.parameters"),
        ("documents", [1] * MANY, "documents[0]"),
        ("documents", [{}] * (MAX_DOCUMENTS + 1), "documents"),
        ("metadata", {str(i): i for i in range(MANY)}, "metadata.0"),
        ("metadata", {str(i): "" for i in range(MAX_NOTES + 1)}, "metadata"),
        ("chat_template_kwargs", {str(i): i for i in range(MAX_KEYS + 1)}, "chat_template_kwargs"),
        ("logit_bias", {str(i): "" for i in range(MANY)}, "logit_bias.0"),
        ("logit_bias", {str(i): 0 for i in range(MAX_BIASED_TOKENS + 1)}, "logit_bias"),
        ("allowed_token_ids", [-1] * MANY, "allowed_token_ids[0]"),
        ("allowed_token_ids", [1] * (MAX_ALLOWED_TOKENS + 1), "allowed_token_ids"),
        ("banned_sequences", [1] * MANY, "banned_sequences[0]"),
        ("banned_sequences", [[1]] * (MAX_BANNED_SEQUENCES + 1), "banned_sequences"),
        ("banned_sequences", [[1] * (MAX_BANNED_SEQUENCE_TOKENS + 1)], "banned_sequences[0]"),
        ("stop_token_ids", ["a"] * MANY, "stop_token_ids[0]"),
        ("stop_token_ids", [1] * (MAX_STOP_TOKEN_IDS + 1), "stop_token_ids"),
        ("structured_outputs", {"choice": [1] * MANY}, "structured_outputs.choice[0]"),
        ("structured_outputs", {"choice": ["a"] * (MAX_CHOICES + 1)}, "structured_outputs.choice"),
    ],
)  # fmt: skip
def test_the_first_wrong_item_ends_a_list_and_a_long_one_is_refused_whole(field: str, value: Any, where: str) -> None:
    reads: list[tuple[type[Body], Callable[..., Body]]] = [
        (ChatBody, read),
        (CompletionBody, read),
        (InferFields, body_of),
    ]
    for model, check in reads:
        if field not in model.model_fields:
            continue
        body = {"messages": [USER], "prompt": "a"} | {field: value}
        with pytest.raises(InvalidRequest) as refused:
            check({name: value for name, value in body.items() if name in model.model_fields}, model)
        assert [violation.field for violation in refused.value.violations] == [where]
        assert len(refused.value.message) < 250
        if where == field:
            assert f"{len(value)} are too many: at most " in refused.value.message


def test_what_is_shown_of_a_value_is_its_beginning() -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"inputs": "a", "tenant": [[["a" * 1000] * 1000] * 100]}, GenerateBody)
    assert len(refused.value.message) < 250


def test_what_is_shown_of_lists_in_lists_is_two_levels_of_them() -> None:
    value: Any = 1
    for _ in range(5):
        value = [value] * 16
    assert len(SHOWN.repr(value)) < 4096
    with pytest.raises(InvalidRequest) as refused:
        read({"inputs": "a", "structured_outputs": {"json": value}}, GenerateBody)
    assert len(refused.value.message) < 1000


def test_prompts_are_counted_before_they_are_looked_at() -> None:
    with pytest.raises(InvalidRequest, match="prompt: 3 prompts are not allowed: from 1 to 2"):
        prompts_of([{}, {}, {}], "prompt", 2)
    with pytest.raises(InvalidRequest, match="4097 parts are too many: at most 4096"):
        message_of(ChatMessageFields(role="user", content=[{}] * (MAX_PARTS + 1)), 0)


def test_too_many_stop_strings_are_named_by_their_number() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/generate", json={"inputs": "a", "stop": [""] * MANY})
            assert response.status_code == 400
            assert response.json()["error"]["message"] == f"stop: {MANY} strings are too many: at most 16"

    asyncio.run(main())


def unbounded(schema: Any, where: str) -> Iterator[str]:
    """Lists and open objects in a schema without a bound of their own."""
    if isinstance(schema, list):
        for each in schema:
            yield from unbounded(each, where)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield where
    if schema.get("type") == "object" and "properties" not in schema and "maxProperties" not in schema:
        yield where
    for name, each in schema.get("properties", {}).items():
        yield from unbounded(each, f"{where}.{name}")
    for key in ("items", "anyOf", "additionalProperties"):
        yield from unbounded(schema.get(key), where)


def test_every_list_and_object_of_every_body_has_a_bound() -> None:
    schemas = description()["components"]["schemas"]
    names = {body.__name__ for body in BODIES} | {
        "ChatMessageFields", "ToolFields", "FunctionFields", "ToolCallFields", "JsonSchemaFields", "StructuredOutputs",
    }  # fmt: skip
    found = {where for name in names for where in unbounded(schemas[name], name)}
    assert {where for where in found if where.rpartition(".")[2] not in BY_SETTING} == set()
