"""Reasoning and tool calls over gRPC, through all three tiers, and in the Python client."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.tool_model import CALL, WEATHER, tool_folder, tool_stack
from tokenwire.client import AsyncClient, Finished, FinishReason, Message, TextDelta, Tool, ToolCall
from tokenwire.errors import FailedPrecondition, InvalidRequest, Unsupported
from tokenwire.parsed import Parsed
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2
from tokenwire.wire import parsed_from_wire, terminal_from_wire

ARGUMENTS = '{"city": "Zürich"}'
TOOL = Tool("get_weather", "The weather now", WEATHER["function"]["parameters"])
THINKS = f"I must ask.\n</think>\n\nWait.\n{CALL}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool_folder(tmp_path_factory.mktemp("tools"))


def conversation(**fields: Any) -> tokenizer_pb2.Conversation:
    found = tokenizer_pb2.Conversation(**fields)
    found.messages.add(role="user", content="hi")
    found.tools.add(name="get_weather", parameters_json=json.dumps(TOOL.parameters))
    return found


def test_the_client_gets_reasoning_text_and_calls_and_goes_on(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, f"<think>I must ask.</think>Wait.{CALL}{CALL}") as stack:
            async with AsyncClient(stack.live.grpc_target) as client:
                stream = client.chat("hi", tools=[TOOL])
                events = [event async for event in stream]
                deltas = [event for event in events if isinstance(event, TextDelta)]
                assert isinstance(events[-1], Finished) and events[-1].terminal.reason is FinishReason.STOP_TOKEN
                assert "".join(delta.reasoning for delta in deltas) == "I must ask."
                assert "".join(delta.text for delta in deltas) == "Wait."
                assert len([call for delta in deltas for call in delta.tool_calls if call.name]) == 2
                (output,) = await stream.outputs()
                assert (output.text, output.reasoning) == ("Wait.", "I must ask.")
                assert [(c.name, c.arguments, c.index) for c in output.tool_calls] == [
                    ("get_weather", ARGUMENTS, 0),
                    ("get_weather", ARGUMENTS, 1),
                ]
                messages = [
                    Message("user", "hi"),
                    output.message,
                    *(Message("tool", "3 °C", tool_call_id=call.id) for call in output.tool_calls),
                ]
                await client.chat(messages, tools=[TOOL]).outputs()
                assert f"3 °C ({output.tool_calls[1].id})" in stack.prompt()
                assert f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>' in stack.prompt()
                with pytest.raises(InvalidRequest, match=r"tools\[0\].parameters"):
                    client.chat("hi", tools=[Tool("f", parameters={"x": {1, 2}})])
                with pytest.raises(InvalidRequest, match=r"messages\[0\].tool_calls\[0\]"):
                    client.chat([Message("assistant", "", (ToolCall("c", "\ud800"),))])

    asyncio.run(main())


def test_thinking_that_the_template_began(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, THINKS) as stack:
            for thinking, reasoning, text in ((True, "I must ask.", "Wait."), (False, "", "I must ask.\n\n\nWait.")):
                arguments = json.dumps({"thinking": thinking})
                request = gateway_pb2.ChatRequest(conversation=conversation(template_arguments_json=arguments))
                found = Parsed()
                content = ""
                async for response in stack.live.stub.Chat(request):
                    content += response.delta.text
                    parsed = parsed_from_wire(response.delta.reasoning, response.delta.tool_calls)
                    found.extend(parsed or Parsed())
                assert (found.reasoning, content) == (reasoning, text)
                assert [(call.name, call.arguments) for call in found.tool_calls] == [("get_weather", ARGUMENTS)]

    asyncio.run(main())


def test_special_tokens_are_shown_when_asked_for(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, "a</tool_call>b<|im_end|>c") as stack:
            for skip, text in ((True, "abc"), (False, "a</tool_call>b<|im_end|>c")):
                request = gateway_pb2.ChatRequest(conversation=conversation())
                request.options.output.skip_special_tokens = skip
                responses = [response async for response in stack.live.stub.Chat(request)]
                assert "".join(response.delta.text for response in responses) == text

    asyncio.run(main())


def test_a_session_with_credit_gets_every_piece_in_order(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, f"<think>I must ask.</think>Wait.{CALL}") as stack:
            call = stack.live.stub.Session()
            await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
            await call.read()
            request = tokenizer_pb2.TextRequest(conversation=conversation())
            submit = tokenizer_pb2.Submit(handle=1, request=request, initial_credit=2)
            await call.write(tokenizer_pb2.SessionRequest(submits=[submit]))
            found, text, num_tokens, terminal = Parsed(), "", 0, None
            while terminal is None:
                frame = await asyncio.wait_for(call.read(), 10)
                for _, new, count in zip(frame.handles, frame.texts, frame.num_tokens, strict=True):
                    text += new
                    num_tokens += count
                    await call.write(tokenizer_pb2.SessionRequest(credits=[common_pb2.Credit(handle=1, tokens=2)]))
                for extras in frame.extras:
                    found.extend(parsed_from_wire(extras.reasoning, extras.tool_calls) or Parsed())
                for finish in frame.finishes:
                    terminal = terminal_from_wire(finish)
            assert (found.reasoning, text) == ("I must ask.", "Wait.")
            (made,) = found.tool_calls
            assert (made.name, made.arguments) == ("get_weather", ARGUMENTS)
            assert num_tokens == terminal.usage.completion_tokens == len(stack.tier.ids(stack.says))

    asyncio.run(main())


def test_one_call_at_most_ends_with_what_the_call_ends_with(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, f"{CALL}{CALL} and more") as stack:
            request = gateway_pb2.ChatRequest(conversation=conversation(parallel_tool_calls=False))
            responses = [response async for response in stack.live.stub.Chat(request)]
            terminal = terminal_from_wire(responses[-1].finish)
            assert (terminal.reason, terminal.stop_string) == (FinishReason.STOP_STRING, "</tool_call>")
            pieces = [call for response in responses for call in response.delta.tool_calls]
            assert len([piece for piece in pieces if piece.name]) == 1
            assert "".join(response.delta.text for response in responses) == ""

    asyncio.run(main())


def test_what_is_wrong_is_named(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, "x") as stack:
            strict = conversation()
            strict.tools[0].strict = True
            nameless = conversation()
            nameless.tools.add(description="?")
            for bad, kind, field in (
                (strict, Unsupported, "conversation.tools[0].strict"),
                (nameless, InvalidRequest, "conversation.tools[1].name"),
            ):
                with pytest.raises(Exception) as caught:
                    _ = [r async for r in stack.live.stub.Chat(gateway_pb2.ChatRequest(conversation=bad))]
                error = from_rpc_error(caught.value)
                assert isinstance(error, kind) and not isinstance(error, FailedPrecondition)
                assert error.violations[0].field == field

    asyncio.run(main())


def test_pieces_come_as_soon_as_they_are_there(folder: Path) -> None:
    async def main() -> None:
        async with tool_stack(folder, "", hold=True) as stack:
            call = stack.live.stub.Chat(gateway_pb2.ChatRequest(conversation=conversation()))
            received = await stack.model.request()

            async def told(text: str) -> Parsed:
                await received.say(*stack.tier.ids(text))
                response = await asyncio.wait_for(call.read(), 10)
                assert not response.HasField("finish")
                return parsed_from_wire(response.delta.reasoning, response.delta.tool_calls) or Parsed()

            assert (await told("<think>I must")).reasoning == "I must"
            assert (await told(" ask")).reasoning == " ask"
            (begun,) = (await told('</think><tool_call>{"name": "get_weather", "arguments": {"ci')).tool_calls
            assert (begun.name, begun.arguments) == ("get_weather", '{"ci')
            (more,) = (await told('ty": "Zü')).tool_calls
            assert (more.id, more.name, more.arguments, more.index) == ("", "", 'ty": "Zü', 0)
            call.cancel()

    asyncio.run(main())
