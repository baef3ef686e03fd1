"""What a chat answer has besides content, in OpenAI's shape: reasoning and tool calls, whole and in pieces.

Source: https://platform.openai.com/docs/api-reference/chat/streaming; `reasoning_content` is not in it: servers of
reasoning models add it.
"""

from collections.abc import Sequence
from typing import Any

from gateway.http.sse import json_text
from tokenwire.parsed import Parsed, ToolCall


def reasoning_delta(parsed: Parsed) -> str | None:
    """The payload of a chunk with new reasoning; None where there is none."""
    return f'"delta":{{"reasoning_content":{json_text(parsed.reasoning)}}}' if parsed.reasoning else None


def tool_calls_delta(parsed: Parsed) -> str | None:
    """The payload of a chunk with new pieces of tool calls; None where there are none."""
    if not parsed.tool_calls:
        return None
    return f'"delta":{{"tool_calls":{json_text([_piece(call) for call in parsed.tool_calls])}}}'


def message_object(content: str, parsed: Parsed | None) -> dict[str, Any]:
    """The whole message of the assistant. Its content is null where it is nothing but calls."""
    calls: Sequence[ToolCall] = parsed.tool_calls if parsed is not None else ()
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content}
    message["refusal"] = None
    if parsed is not None and parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def _piece(call: ToolCall) -> dict[str, Any]:
    """The first piece of a call has its id, type and name; the others have arguments alone."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
