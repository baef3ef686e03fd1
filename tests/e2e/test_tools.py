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
