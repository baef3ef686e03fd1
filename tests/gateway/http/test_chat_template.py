"""What a conversation gives to the chat template besides messages and tools: over HTTP and in the client."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.http.errors import http_name
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tool_model import tool_folder, tool_stack
from tokenwire.client import AsyncClient, Message
from tokenwire.errors import InvalidRequest

ASK = [{"role": "user", "content": "Weather?"}]
BEGUN = [*ASK, {"role": "assistant", "content": "It is"}]
DOCUMENTS = [{"title": "Zürich", "text": "3 °C", "n": 1.0}, {"b": 1, "a": [True, None]}]
ASKED = "<|im_start|>user\nWeather?<|im_end|>\n"
HEADER = "<|im_start|>assistant\n"
SHOWN = """\
<|im_start|>document
{"title": "Zürich", "text": "3 °C", "n": 1.0}<|im_end|>
<|im_start|>document
{"b": 1, "a": [true, null]}<|im_end|>
"""
CASES: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = [
    ({}, ASK, ASKED + HEADER),
    ({"template_arguments": {"thinking": True}}, ASK, ASKED + HEADER + "<think>\n"),
    ({"template_arguments": {"thinking": False}}, ASK, ASKED + HEADER),
    ({"documents": DOCUMENTS}, ASK, SHOWN + ASKED + HEADER),
    ({"add_generation_prompt": True}, ASK, ASKED + HEADER),
    ({"add_generation_prompt": False}, ASK, ASKED),
    ({"continue_final_message": True}, BEGUN, f"{ASKED}{HEADER}It is"),
    ({"continue_final_message": True, "add_generation_prompt": False}, BEGUN, f"{ASKED}{HEADER}It is"),
    ({"template_arguments": {}, "documents": []}, ASK, ASKED + HEADER),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool_folder(tmp_path_factory.mktemp("template"))


def over_http(fields: dict[str, Any]) -> dict[str, Any]:
    return {"chat_template_kwargs" if name == "template_arguments" else name: fields[name] for name in fields}


def test_the_prompt_is_what_was_asked_for(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, "fine") as stack, AsyncClient(stack.live.grpc_target) as client:
            for fields, messages, prompt in CASES:
                body = {"messages": messages, **over_http(fields)}
                response = await stack.live.http.post("/v1/chat/completions", json=body)
                assert response.status_code == 200, response.text
                assert stack.prompt() == prompt
                said = [Message(**message) for message in messages]
                await client.chat(said, **fields).text()
                assert stack.prompt() == prompt
                assert (await client.apply_chat_template(said, **fields)).text == prompt
            assert len(stack.model.requests) == 2 * len(CASES)

    asyncio.run(main())


def test_null_is_absent(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, "fine") as stack:
            names = ("chat_template_kwargs", "documents", "add_generation_prompt", "continue_final_message")
            body = {"messages": ASK, **dict.fromkeys(names)}
            assert (await stack.live.http.post("/v1/chat/completions", json=body)).status_code == 200
            assert stack.prompt() == ASKED + HEADER

    asyncio.run(main())


def test_the_template_refuses_by_the_names_of_http_and_of_the_client(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, "fine") as stack, AsyncClient(stack.live.grpc_target) as client:
            for fields, param in (
                ({"template_arguments": {"documents": []}}, "chat_template_kwargs.documents"),
                ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
            ):
                response = await stack.live.http.post(
                    "/v1/chat/completions", json={"messages": ASK, **over_http(fields)}
                )
                assert response.status_code == 400
                error = response.json()["error"]
                assert error["param"] == param and error["message"].startswith(f"{param}: ")
                with pytest.raises(InvalidRequest):
                    await client.chat("Weather?", **fields).text()  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('"chat_template_kwargs": "{}"', "chat_template_kwargs"),
        ('"chat_template_kwargs": [1]', "chat_template_kwargs"),
        ('"chat_template_kwargs": {"a": Infinity}', "chat_template_kwargs"),
        ('"chat_template_kwargs": {"a": [1e999]}', "chat_template_kwargs"),
        ('"documents": {"a": 1}', "documents"),
        ('"documents": [{}, "a"]', "documents[1]"),
        ('"documents": [{}, {"a": NaN}]', "documents[1]"),
        ('"add_generation_prompt": 1', "add_generation_prompt"),
        ('"continue_final_message": "true"', "continue_final_message"),
        (r'"chat_template_kwargs": {"a": "\ud800"}', None),
        (r'"documents": [{"\udc00": 1}]', None),
    ],
)
def test_what_is_wrong_is_named(text: str, param: str | None) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post(
                "/v1/chat/completions",
                content=f'{{"messages": {json.dumps(ASK)}, {text}}}',
                headers={"Content-Type": "application/json"},
            )
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] == param
            assert error["code"] == ("invalid_request" if param else "malformed_json")
            assert not tier.requests

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("conversation", "messages"),
        ("conversation.messages", "messages"),
        ("conversation.messages[2].role", "messages[2].role"),
        ("conversation.messages[2].reasoning", "messages[2].reasoning_content"),
        ("conversation.messages[2].tool_calls[1].arguments", "messages[2].tool_calls[1].function.arguments"),
        ("conversation.messages[2].tool_calls[1].id", "messages[2].tool_calls[1].id"),
        ("conversation.tools", "tools"),
        ("conversation.tools[3].parameters_json", "tools[3].function.parameters"),
        ("conversation.tools[3].name", "tools[3].function.name"),
        ("conversation.documents_json[1]", "documents[1]"),
        ("conversation.template_arguments_json", "chat_template_kwargs"),
        ("conversation.template_arguments.tools", "chat_template_kwargs.tools"),
        ("conversation.continue_final_message", "continue_final_message"),
    ],
)
def test_fields_of_a_conversation_have_the_names_of_http(field: str, name: str) -> None:
    assert http_name(field, "messages") == name
