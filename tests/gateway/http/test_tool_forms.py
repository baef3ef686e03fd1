"""Calls in the forms of several families come out as OpenAI's, streamed and whole."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.tool_model import WEATHER, tool_folder, tool_stack

ARGUMENTS = ['{"city": "Zürich"}', '{"city": "Bonn"}']
FIRST, SECOND = ARGUMENTS
NAME = '"name": "get_weather"'
BODY = {"messages": [{"role": "user", "content": "What is the weather?"}], "tools": [WEATHER]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool_folder(tmp_path_factory.mktemp("tools"), True)


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("hermes", f'<tool_call>{{{NAME}, "parameters": {json.dumps(FIRST)}}}\n'
                   f'<tool_call>{{{NAME}, "arguments": {SECOND}}}'),
        ("llama3", f'{{{NAME}, "parameters": {FIRST}}}, {{{NAME}, "arguments": {SECOND}}}'),
        ("llama3", f'[{{{NAME}, "parameters": {FIRST}}},\n{{{NAME}, "parameters": {SECOND}}}]'),
        ("mistral", f"[TOOL_CALLS]get_weather{FIRST}[TOOL_CALLS]get_weather{SECOND}"),
        ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{FIRST}[TOOL_CALLS]get_weather[ARGS]{SECOND}"),
    ],
)  # fmt: skip
def test_two_calls(folder: Path, tools: str, says: str) -> None:
    async def main() -> None:
        async with tool_stack(folder, says, tool_parser=tools) as stack:
            answer = await stack.live.http.post("/v1/chat/completions", json=BODY)
            (choice,) = answer.json()["choices"]
            assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
            assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ARGUMENTS
            streamed = (await stack.live.http.post("/v1/chat/completions", json={**BODY, "stream": True})).text
        lines = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line]
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert not any(choice["delta"].get("content") for choice in choices)
        pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", ())]
        assert [piece["index"] for piece in pieces if "id" in piece] == [0, 1]
        for index, arguments in enumerate(ARGUMENTS):
            functions = [piece["function"] for piece in pieces if piece["index"] == index]
            assert [function["name"] for function in functions if "name" in function] == ["get_weather"]
            assert "".join(function.get("arguments", "") for function in functions) == arguments

    asyncio.run(main())
