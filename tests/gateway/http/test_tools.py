import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tests.fakes.tool_model import CALL, WEATHER, tool_folder, tool_stack
from tokenwire.requests import FinishReason, Terminal

SAYS = f"<think>\nI must ask.\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
ARGUMENTS = '{"city": "Zürich"}'
ASK = [{"role": "user", "content": "What is the weather in Zürich?"}]


@pytest.fixture(scope="module", params=[True, False], ids=["special tokens", "plain text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool_folder(tmp_path_factory.mktemp("tools"), request.param)


def chunks_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_whole_answer(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS) as stack:
            body = {"messages": ASK, "tools": [WEATHER], "n": 2}
            answer = (await stack.live.http.post("/v1/chat/completions", json=body)).json()
            assert '"name": "get_weather"' in stack.prompt() and "Call them in <tool_call>" in stack.prompt()
            ids = set()
            for choice in answer["choices"]:
                message = choice["message"]
                assert (message["content"], message["reasoning_content"]) == ("Let me see.", "I must ask.")
                assert choice["finish_reason"] == "tool_calls"
                for call in message["tool_calls"]:
                    assert call["type"] == "function"
                    assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
                    assert call["id"].startswith("call_") and len(call["id"]) == 29
                    ids.add(call["id"])
            assert len(ids) == 4
            assert answer["usage"]["completion_tokens"] == 2 * len(stack.tier.ids(SAYS))

    asyncio.run(main())


def test_a_streamed_answer(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS) as stack:
            body = {"messages": ASK, "tools": [WEATHER], "stream": True, "tool_choice": "auto"}
            *chunks, last = chunks_of((await stack.live.http.post("/v1/chat/completions", json=body)).text)
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            assert deltas[0] == {"role": "assistant", "content": ""}
            assert "".join(d.get("reasoning_content", "") for d in deltas) == "I must ask."
            assert "".join(d.get("content", "") for d in deltas) == "Let me see."
            pieces = [piece for d in deltas for piece in d.get("tool_calls", ())]
            for index in (0, 1):
                first, *rest = [piece for piece in pieces if piece["index"] == index]
                assert first["id"].startswith("call_") and first["type"] == "function"
                assert first["function"]["name"] == "get_weather"
                assert all(piece.keys() == {"index", "function"} for piece in rest)
                assert all(piece["function"].keys() == {"arguments"} for piece in rest)
                assert "".join(p["function"]["arguments"] for p in (first, *rest)) == ARGUMENTS
            assert last["choices"][0] == {
                "index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls",
            }  # fmt: skip

    asyncio.run(main())


def test_the_openai_client_makes_a_round_trip(folder: Path) -> None:
    async def main() -> None:
        async with (
            tool_stack(folder, SAYS) as stack,
            openai.AsyncOpenAI(base_url=f"{stack.live.http_url}/v1", api_key="unused", max_retries=0) as client,
        ):
            name = folder.name
            answer = await client.chat.completions.create(model=name, messages=ASK, tools=[WEATHER])
            message = answer.choices[0].message
            assert message.tool_calls and json.loads(message.tool_calls[0].function.arguments) == {"city": "Zürich"}
            results = [{"role": "tool", "tool_call_id": c.id, "content": "3 °C"} for c in message.tool_calls]
            messages = [*ASK, message, *results]
            async with client.chat.completions.stream(model=name, messages=messages, tools=[WEATHER]) as stream:
                done = [e async for e in stream if e.type == "tool_calls.function.arguments.done"]
                final = await stream.get_final_completion()
            assert [(event.name, event.arguments) for event in done] == [("get_weather", ARGUMENTS)] * 2
            assert final.choices[0].finish_reason == "tool_calls"
            call = message.tool_calls[0]
            assert '<think>I must ask.</think>Let me see.<tool_call>{"name": "get_weather"' in stack.prompt()
            assert f"<|im_start|>tool\n3 °C ({call.id})<|im_end|>" in stack.prompt()

    asyncio.run(main())


def test_without_tools_calls_are_text_and_thinking_is_not(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS) as stack:
            for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}):
                answer = await stack.live.http.post("/v1/chat/completions", json={"messages": ASK, **fields})
                (choice,) = answer.json()["choices"]
                assert choice["finish_reason"] == "stop" and "tool_calls" not in choice["message"]
                assert choice["message"]["reasoning_content"] == "I must ask."
                assert ("<tool_call>" in choice["message"]["content"]) == ("True" not in folder.name)
                assert "get_weather" in choice["message"]["content"] and "Call them" not in stack.prompt()

    asyncio.run(main())


def test_text_completions_are_left_as_they_are(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS) as stack:
            answer = await stack.live.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 500})
            plain = stack.tier.tokenizer.decode(stack.tier.ids(SAYS), skip_special_tokens=True)
            assert answer.json()["choices"][0]["text"] == plain

    asyncio.run(main())


def test_settings_turn_parsers_off_and_on(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS, tool_parser="none", reasoning_parser="none") as stack:
            answer = await stack.live.http.post("/v1/chat/completions", json={"messages": ASK, "tools": [WEATHER]})
            plain = stack.tier.tokenizer.decode(stack.tier.ids(SAYS), skip_special_tokens=True)
            message = answer.json()["choices"][0]["message"]
            assert message == {"role": "assistant", "content": plain, "refusal": None}
        async with tool_stack(folder, "[TOOL_CALLS]now[ARGS]{}", tool_parser="mistral") as stack:
            answer = await stack.live.http.post("/v1/chat/completions", json={"messages": ASK, "tools": [WEATHER]})
            message = answer.json()["choices"][0]["message"]
            assert message["content"] is None
            (call,) = message["tool_calls"]
            assert call["function"] == {"name": "now", "arguments": "{}"} and len(call["id"]) == 9

    asyncio.run(main())


def test_one_call_at_most_when_asked_for(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS, hold=True) as stack:
            body = {"messages": ASK, "tools": [WEATHER], "parallel_tool_calls": False}
            asking = asyncio.ensure_future(stack.live.http.post("/v1/chat/completions", json=body))
            received = await stack.model.request()
            await received.say(*stack.tier.ids(SAYS))
            await stack.model.until(lambda fake: fake.cancels == [(received.handle, "stop_string")])
            await received.end(Terminal(FinishReason.CANCELLED))
            answer = (await asking).json()
            (choice,) = answer["choices"]
            assert choice["finish_reason"] == "tool_calls" and len(choice["message"]["tool_calls"]) == 1
            assert answer["usage"]["completion_tokens"] < len(stack.tier.ids(SAYS)) * 0.75

    asyncio.run(main())


def test_an_answer_that_was_cut_says_length(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, CALL[:-30], FinishReason.LENGTH) as stack:
            for stream in (False, True):
                body = {"messages": ASK, "tools": [WEATHER], "stream": stream}
                text = (await stack.live.http.post("/v1/chat/completions", json=body)).text
                assert '"finish_reason":"length"' in text and "get_weather" in text

    asyncio.run(main())


def test_logprobs_are_there_for_every_token(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS) as stack:
            body = {"messages": ASK, "tools": [WEATHER], "logprobs": True}
            (choice,) = (await stack.live.http.post("/v1/chat/completions", json=body)).json()["choices"]
            assert len(choice["logprobs"]["content"]) == len(stack.tier.ids(SAYS))
            response = await stack.live.http.post("/v1/chat/completions", json={**body, "stream": True})
            streamed = chunks_of(response.text)
            found = [c["choices"][0]["logprobs"] for c in streamed]
            assert sum(len(f["content"]) for f in found if f) == len(stack.tier.ids(SAYS))

    asyncio.run(main())


def test_stop_strings_see_the_raw_text(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, SAYS) as stack:
            body = {"messages": ASK, "tools": [WEATHER], "stop": ["must"]}
            (choice,) = (await stack.live.http.post("/v1/chat/completions", json=body)).json()["choices"]
            assert choice["message"]["reasoning_content"] == "I " and choice["message"]["content"] == ""
            assert choice["finish_reason"] == "stop"

    asyncio.run(main())


FUNCTION = WEATHER["function"]


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def made(arguments: str, **fields: Any) -> dict[str, Any]:
    return {"id": "c", "function": {"name": "f", "arguments": arguments}, **fields}


def test_a_call_that_must_be_made_goes_down_and_its_arguments_may_be_strict() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            named = {"type": "function", "function": {"name": "get_weather"}}
            strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
            for choice, required in (("required", "*"), (named, "get_weather"), ("auto", ""), (None, "")):
                tools = [strict if required else WEATHER]
                body = {"messages": ASK, "tools": tools, "tool_choice": choice}
                response = await live.http.post("/v1/chat/completions", json=body)
                assert response.status_code == 200, response.text
                conversation = tier.requests[-1].conversation
                assert conversation.required_tool == required
                assert conversation.tools[0].strict is bool(required)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_request"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_request"),
        ({"tools": [function(parameters={"x": 1e999})]}, "tools[0].function.parameters", "invalid_request"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "invalid_request"),
        ({"tools": [function(x=1)]}, "tools[0].function.x", "unknown_parameter"),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}]},
            "tools[0].function.strict",
            "unsupported_parameter",
        ),
        ({"tools": [WEATHER] * 257}, "tools", "invalid_request"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "invalid_request"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice", "invalid_request"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice", "invalid_request"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_money"}}},
            "tool_choice.function.name",
            "invalid_request",
        ),
        ({"functions": [FUNCTION]}, "functions", "unsupported_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]},
            "messages[0].tool_call_id",
            "invalid_request",
        ),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [made("")]}]},
            "messages[0].tool_calls",
            "invalid_request",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [made("{")]}]},
            "messages[0].tool_calls[0].function.arguments",
            "invalid_request",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [made("", type="x")]}]},
            "messages[0].tool_calls[0].type",
            "invalid_request",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            body = json.dumps({"messages": ASK, **fields})
            headers = {"Content-Type": "application/json"}
            response = await live.http.post("/v1/chat/completions", content=body, headers=headers)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert (error["param"], error["code"]) == (param, code) and param in error["message"]

    asyncio.run(main())


def test_a_model_with_a_format_of_its_own_refuses_tools(tmp_path: Path) -> None:
    async def main() -> None:
        other = tool_folder(tmp_path, False)
        template = other / "chat_template.jinja"
        source = template.read_text()
        template.write_text(source.replace("<tool_call></tool_call>", "<tool_call><function=f>"))
        async with tool_stack(other, "x") as stack:
            response = await stack.live.http.post("/v1/chat/completions", json={"messages": ASK, "tools": [WEATHER]})
            assert response.status_code == 412
            error = response.json()["error"]
            assert (error["param"], error["code"]) == ("tools", "tool_format_unknown")
            assert (await stack.live.http.post("/v1/chat/completions", json={"messages": ASK})).status_code == 200

    asyncio.run(main())


def test_messages_of_tools_go_down_as_they_are() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}, "index": 0}
            messages = [
                *ASK,
                {"role": "assistant", "tool_calls": [call], "reasoning_content": "Hm", "refusal": None},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3"}]},
                {"role": "user", "content": "And?"},
            ]
            body = {"messages": messages, "tools": [WEATHER], "model": MODEL, "parallel_tool_calls": False}
            assert (await live.http.post("/v1/chat/completions", json=body)).status_code == 200
            conversation = tier.requests[0].conversation
            _, assistant, tool, _ = conversation.messages
            assert (assistant.content, assistant.reasoning) == ("", "Hm")
            (sent,) = assistant.tool_calls
            assert (sent.id, sent.name, sent.arguments) == ("c1", "f", '{"a": 1}')
            assert (tool.role, tool.tool_call_id, tool.content) == ("tool", "c1", "3")
            assert json.loads(conversation.tools[0].parameters_json) == FUNCTION["parameters"]
            assert conversation.HasField("parallel_tool_calls") and not conversation.parallel_tool_calls

    asyncio.run(main())
