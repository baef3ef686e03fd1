"""A conversation as the wire has it, made from the client's values and checked. Does not know what it is sent for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

from tokenwire.client.events import Message, Tool
from tokenwire.client.options import CallOptions, refuse_bad_text
from tokenwire.errors import InvalidRequest
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import tool_call_to_wire


class ConversationOptions(TypedDict, total=False):
    """What a conversation may have beside its messages."""

    tools: Sequence[Tool]
    """Functions that the model may call."""
    parallel_tool_calls: bool
    """False: the answer ends with its first call."""
    required_tool: str
    """The answer is a call of the tool of this name, its arguments valid; "*": of any of them."""
    template_arguments: Mapping[str, Any] | None
    """Extra variables of the model's template, such as enable_thinking."""
    documents: Sequence[Mapping[str, Any]]
    """For templates that take them."""
    add_generation_prompt: bool | None
    """End the prompt with the header of the assistant's turn; None: unless the last message is continued."""
    continue_final_message: bool
    """Go on with the last message instead of answering it."""


class ChatOptions(ConversationOptions, CallOptions, total=False):
    """All that a chat takes beside its messages."""


def chat_parts(messages: str | Sequence[Message], given: ChatOptions) -> tuple[tokenizer_pb2.Conversation, CallOptions]:
    """The conversation of a chat, and how to answer it. Raises InvalidRequest naming the field."""
    of_conversation = {name: value for name, value in given.items() if name in ConversationOptions.__annotations__}
    others = {name: value for name, value in given.items() if name not in of_conversation}
    return conversation_of(messages, **cast(ConversationOptions, of_conversation)), cast(CallOptions, others)


def conversation_of(
    messages: str | Sequence[Message], **given: Unpack[ConversationOptions]
) -> tokenizer_pb2.Conversation:
    """A conversation; a text stands for one message of the user. Raises InvalidRequest naming the field."""
    conversation = tokenizer_pb2.Conversation()
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    if not isinstance(messages, Iterable):
        raise invalid("messages", f"{messages!r:.80} is not allowed: a text, or a sequence of Message")
    for i, message in enumerate(messages):
        _add_message(conversation, message, f"messages[{i}]")
    for i, tool in enumerate(given.get("tools", ())):
        _add_tool(conversation, tool, f"tools[{i}]")
    if not given.get("parallel_tool_calls", True):
        conversation.parallel_tool_calls = False
    if required_tool := given.get("required_tool"):
        refuse_bad_text("required_tool", required_tool)
        conversation.required_tool = required_tool
    if template_arguments := given.get("template_arguments"):
        conversation.template_arguments_json = _json_text(template_arguments, "template_arguments")
    documents = given.get("documents", ())
    conversation.documents_json.extend(_json_text(found, f"documents[{i}]") for i, found in enumerate(documents))
    add_generation_prompt = given.get("add_generation_prompt")
    if add_generation_prompt is not None:
        conversation.add_generation_prompt = _bool(add_generation_prompt, "add_generation_prompt")
    conversation.continue_final_message = _bool(given.get("continue_final_message", False), "continue_final_message")
    return conversation


def invalid(field: str, description: str) -> InvalidRequest:
    """The refusal of one field."""
    return InvalidRequest.of(field, description)


def _add_message(conversation: tokenizer_pb2.Conversation, message: Message, field: str) -> None:
    if not isinstance(message, Message):
        raise invalid(field, f"{message!r:.80} is not allowed: a tokenwire.client.Message")
    refuse_bad_text(f"{field}.role", message.role)
    refuse_bad_text(f"{field}.content", message.content)
    refuse_bad_text(f"{field}.reasoning", message.reasoning)
    refuse_bad_text(f"{field}.tool_call_id", message.tool_call_id)
    for i, call in enumerate(message.tool_calls):
        refuse_bad_text(f"{field}.tool_calls[{i}]", call.id + call.name + call.arguments)
    conversation.messages.add(
        role=message.role,
        content=message.content,
        tool_calls=map(tool_call_to_wire, message.tool_calls),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning,
    )


def _add_tool(conversation: tokenizer_pb2.Conversation, tool: Tool, field: str) -> None:
    if not isinstance(tool, Tool):
        raise invalid(field, f"{tool!r:.80} is not allowed: a tokenwire.client.Tool")
    refuse_bad_text(f"{field}.name", tool.name)
    refuse_bad_text(f"{field}.description", tool.description)
    parameters = "" if tool.parameters is None else _json_text(tool.parameters, f"{field}.parameters")
    conversation.tools.add(name=tool.name, description=tool.description, parameters_json=parameters)


def _json_text(value: object, field: str) -> str:
    """A JSON object, keys in their order."""
    if not isinstance(value, Mapping):
        raise invalid(field, f"{value!r:.80} is not allowed: a mapping that JSON can hold")
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(field, f"is not JSON ({error})") from None
    refuse_bad_text(field, text)
    return text


def _bool(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(field, f"{value!r:.80} is not allowed: True or False")
    return value
