"""Messages and tools of a chat request's body, as OpenAI's API reference has them, checked and made into plain values.

Source: https://platform.openai.com/docs/api-reference/chat/create. `reasoning_content` is not in it: servers of
reasoning models add it, and templates that want earlier reasoning get it back through it.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from gateway.http.body import Body, invalid, refuse_extras
from gateway.http.bounds import MAX_KEYS, MAX_PARTS, MAX_TOOLS, at_most
from gateway.text_requests import Message, Tool
from tokenwire.parsed import ToolCall

UNBUILT_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
}
UNBUILT_ROLES = {"function"}
SAME_ROLES = {"developer": "system"}
"""OpenAI's newer word for the same role, which templates do not know."""
IGNORED_IN_CALLS = frozenset({"index"})
"""Streamed calls have it, and some clients send them back as they came."""
CONTENT_SCHEMA = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PARTS,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
"""What `_content` takes."""


class FunctionCallFields(Body):
    """What was called, and with what."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class ToolCallFields(Body):
    """A call that the assistant made."""

    id: Annotated[str, Field(min_length=1)]
    type: str = "function"
    function: FunctionCallFields


class ChatMessageFields(Body):
    """One message of the conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Annotated[Any, WithJsonSchema(CONTENT_SCHEMA)] = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallFields], at_most(MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionFields(Body):
    """A function and its arguments."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: Annotated[dict[str, Any], at_most(MAX_KEYS)] | None = None
    strict: bool | None = None


class ToolFields(Body):
    """Something that the model may call."""

    type: str
    function: FunctionFields | None = None


def message_of(message: ChatMessageFields, index: int) -> Message:
    """One message. Raises InvalidRequest naming the field."""
    where = f"messages[{index}]"
    refuse_extras(message, UNBUILT_MESSAGE, prefix=f"{where}.")
    if message.role in UNBUILT_ROLES:
        raise invalid(f"{where}.role", f"{message.role!r} is not built in this release; use 'tool'")
    if message.tool_calls and message.role != "assistant":
        raise invalid(f"{where}.tool_calls", f"is allowed in a message of the assistant alone, not of {message.role!r}")
    if message.role == "tool" and not message.tool_call_id:
        raise invalid(f"{where}.tool_call_id", "is required: which call does the message answer?")
    if message.tool_call_id and message.role != "tool":
        raise invalid(f"{where}.tool_call_id", f"is allowed in a message of a tool alone, not of {message.role!r}")
    return Message(
        SAME_ROLES.get(message.role, message.role),
        "" if message.content is None and message.tool_calls else _content(message.content, f"{where}.content"),
        message.name or "",
        tuple(_call(call, f"{where}.tool_calls[{i}]", i) for i, call in enumerate(message.tool_calls or ())),
        message.tool_call_id or "",
        message.reasoning_content or "",
    )


def tools_of(tools: Sequence[ToolFields], tool_choice: Any) -> tuple[tuple[Tool, ...], str]:
    """The functions that may be called, none where `tool_choice` is "none"; and which must be, see `Conversation`.

    Raises InvalidRequest naming the field.
    """
    required = _required(tool_choice, [tool.function.name for tool in tools if tool.function is not None])
    found = tuple(_tool(tool, f"tools[{i}]", forced=bool(required)) for i, tool in enumerate(tools))
    return ((), "") if tool_choice == "none" else (found, required)


def _required(tool_choice: Any, names: Sequence[str]) -> str:
    """The function that must be called; "*": any; empty: none. Raises InvalidRequest."""
    if tool_choice in (None, "none", "auto"):
        return ""
    if tool_choice == "required":
        if not names:
            raise invalid("tool_choice", "'required' is not allowed: there are no tools to call")
        return "*"
    function = tool_choice.get("function") if isinstance(tool_choice, dict) else None
    named = function.get("name") if isinstance(function, dict) else None
    if named is None or tool_choice != {"type": "function", "function": {"name": named}}:
        allowed = '\'auto\', \'none\', \'required\' or {"type": "function", "function": {"name": …}}'
        raise invalid("tool_choice", f"{tool_choice!r:.80} is not allowed: {allowed}")
    if named not in names:
        raise invalid("tool_choice.function.name", f"{named!r:.80} is not allowed: the name of one of the tools")
    return str(named)


def json_text(value: dict[str, Any], where: str) -> str:
    """An object of the body as JSON text, keys in their order. Raises InvalidRequest for what JSON cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise invalid(where, f"is not JSON ({error})") from None


def _tool(tool: ToolFields, where: str, *, forced: bool) -> Tool:
    refuse_extras(tool, {}, prefix=f"{where}.")
    if tool.type != "function":
        raise invalid(f"{where}.type", f"{tool.type!r:.80} is not allowed: 'function'")
    if tool.function is None:
        raise invalid(f"{where}.function", "is missing")
    function = tool.function
    refuse_extras(function, {}, prefix=f"{where}.function.")
    if function.strict and not forced:
        description = "true is built for calls that must be made (tool_choice 'required' or a named function) alone"
        raise invalid(f"{where}.function.strict", description, reason="UNSUPPORTED_PARAMETER")
    parameters = "" if function.parameters is None else json_text(function.parameters, f"{where}.function.parameters")
    return Tool(function.name, function.description or "", parameters, bool(function.strict))


def _call(call: ToolCallFields, where: str, index: int) -> ToolCall:
    refuse_extras(call, {}, IGNORED_IN_CALLS, prefix=f"{where}.")
    refuse_extras(call.function, {}, prefix=f"{where}.function.")
    if call.type != "function":
        raise invalid(f"{where}.type", f"{call.type!r:.80} is not allowed: 'function'")
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(f"{where}.function.arguments", f"{call.function.arguments!r:.80} is not a JSON object")
    return ToolCall(call.id, call.function.name, call.function.arguments, index)


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise invalid(where, f"{content!r:.80} is not allowed: a text, or a list of text parts")
    if len(content) > MAX_PARTS:
        raise invalid(where, f"{len(content)} parts are too many: at most {MAX_PARTS}")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise invalid(f"{where}[{index}].type", f"{kind!r:.80} is not allowed: this release takes text alone")
        text, extra = part.get("text"), part.keys() - {"type", "text"}
        if not isinstance(text, str) or extra:
            raise invalid(f"{where}[{index}]", 'is not allowed: it must be {"type": "text", "text": "…"}')
        texts.append(text)
    return "".join(texts)
