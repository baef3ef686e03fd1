"""Tool calls through every tier on the real model in fp32, which has to be shown a few to make one of its own."""

import json
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Stack
from tokenwire.client import Client, FinishReason, Message, Tool, ToolCall

pytestmark = pytest.mark.model

WEATHER = Tool("get_weather", "The weather now", {"type": "object", "properties": {"city": {"type": "string"}}})
CITIES = ("Paris", "Rome", "Oslo")


def turns() -> list[Message]:
    shown = []
    for city in CITIES:
        call = ToolCall(f"call_{city}", "get_weather", json.dumps({"city": city}))
        shown += [Message("user", f"What is the weather in {city}?"), Message("assistant", "", (call,))]
    return [*shown, Message("user", "What is the weather in London?")]


def as_openai(message: Message) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, **({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize(("parallel", "reason"), [(True, FinishReason.STOP_TOKEN), (False, FinishReason.STOP_STRING)])
def test_the_model_calls_a_function(stack: Stack, parallel: bool, reason: FinishReason) -> None:
    with Client(stack.grpc_target) as client:
        stream = client.chat(turns(), tools=[WEATHER], parallel_tool_calls=parallel, temperature=0, max_tokens=60)
        (output,) = stream.outputs()
        (call,) = output.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "London"})
        assert (output.text, output.terminal.reason) == ("", reason)
        result = Message("tool", "13 °C", tool_call_id=call.id)
        answer = client.chat([*turns(), output.message, result], tools=[WEATHER], temperature=0, max_tokens=30)
        assert answer.outputs()[0].error is None


def test_the_model_calls_a_function_over_http(stack: Stack) -> None:
    messages = [as_openai(message) for message in turns()]
    function = {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters}
    with openai.OpenAI(base_url=f"{stack.http_url}/v1", api_key="unused", max_retries=0) as client:
        options: Any = {"model": "smollm2-135m-instruct", "messages": messages, "temperature": 0, "max_tokens": 60}
        tools: Any = [{"type": "function", "function": function}]
        with client.chat.completions.stream(**options, tools=tools) as stream:
            choice = stream.get_final_completion().choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "London"}
        untouched = client.chat.completions.create(**options).choices[0]
        assert untouched.finish_reason == "stop" and untouched.message.tool_calls is None
        assert "<tool_call>" in (untouched.message.content or "")


def test_a_call_that_must_be_made_is_made_and_its_arguments_are_valid(stack: Stack) -> None:
    """Not shown how, the model would rather talk."""
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 9, "minimum": 1},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }  # fmt: skip
    tools = [Tool("get_time", "The time now", None), Tool("get_forecast", "The weather of some days", parameters)]
    with Client(stack.grpc_target) as client:
        for required in ("get_forecast", "*"):
            stream = client.chat(
                "Tell me a joke.", tools=tools, required_tool=required, temperature=0.8, seed=5, max_tokens=150,
                parallel_tool_calls=False,
            )  # fmt: skip
            (output,) = stream.outputs()
            assert output.text == "" and output.terminal.reason is not FinishReason.LENGTH
            (call,) = output.tool_calls
            arguments = json.loads(call.arguments)
            if call.name == "get_forecast":
                assert set(arguments) == {"city", "days"} and 1 <= arguments["days"] <= 9
            else:
                assert (required, call.name, arguments) == ("*", "get_time", {})
    function = {"name": "get_forecast", "parameters": parameters, "strict": True}
    with openai.OpenAI(base_url=f"{stack.http_url}/v1", api_key="unused", max_retries=0) as client:
        messages = [{"role": "user", "content": "Hi"}]
        asked: Any = {"model": "smollm2-135m-instruct", "messages": messages, "max_tokens": 150}
        asked |= {"tools": [{"type": "function", "function": function}], "parallel_tool_calls": False}
        choice = client.chat.completions.create(**asked, tool_choice="required").choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
        assert set(json.loads(choice.message.tool_calls[0].function.arguments)) == {"city", "days"}
        wrong = {**asked, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**wrong, tool_choice="required")
        assert caught.value.param == "tools[0].function.parameters"
