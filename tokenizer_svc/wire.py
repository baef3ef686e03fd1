"""Messages of TokenizerService to the plain values of this tier. Raises InvalidRequest naming the field."""

import json
import math
from typing import Any

from tokenizer_svc.chat_template import ChatMessage, Conversation
from tokenizer_svc.embedding import EmbeddingCall
from tokenizer_svc.embedding_inputs import EmbeddingInputs
from tokenizer_svc.json_size import nested_beyond
from tokenizer_svc.prompt import Truncation
from tokenizer_svc.text_request import TextRequest
from tokenwire.embedding_wire import embedding_options_from_wire
from tokenwire.errors import FieldViolation, InvalidRequest, Unsupported
from tokenwire.requests import name_violations
from tokenwire.sampling import refuse
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import context_from_wire, options_from_wire

MAX_JSON_LEVELS = 127
"""Of objects and lists within one another, in JSON that comes as text; as many as a schema may have."""


def request_from_wire(message: tokenizer_pb2.TextRequest) -> TextRequest:
    """A text request. Raises Unsupported for what is not built."""
    for i, tool in enumerate(message.conversation.tools):
        if tool.strict and not message.conversation.required_tool:
            field, description = f"conversation.tools[{i}].strict", "is not built for calls that are left to the model"
            raise Unsupported(f"{field} {description}", violations=[FieldViolation(field, description)])
    refuse(name_violations("cache_salt", message.cache_salt))
    return TextRequest(
        context=context_from_wire(message.context),
        model=message.model,
        input=_input(message),
        options=options_from_wire(message.options),
        truncation=truncation_from_wire(message) or (Truncation() if message.truncate else None),
        split_special_tokens=message.split_special_tokens,
        cache_salt=message.cache_salt,
        vocabulary=message.fingerprint.vocabulary,
    )


def truncation_from_wire(
    message: tokenizer_pb2.TextRequest | tokenizer_pb2.TokenizeRequest | tokenizer_pb2.EmbedRequest,
) -> Truncation | None:
    """How what is too long is cut; None where that is not said."""
    if not message.HasField("truncation"):
        return None
    given = message.truncation
    sides = tokenizer_pb2.TruncationSide
    if given.side not in sides.values():
        raise InvalidRequest.of("truncation.side", f"{given.side} is not allowed: 1 for the start, 2 for the end")
    return Truncation(given.side == tokenizer_pb2.TRUNCATION_SIDE_END, given.max_tokens)


def embedding_call_from_wire(message: tokenizer_pb2.EmbedRequest, call_remaining_s: float | None) -> EmbeddingCall:
    """A call to embed. Raises InvalidRequest."""
    if message.texts and message.token_ids:
        raise InvalidRequest.of("token_ids", "texts are given too: one of them is embedded")
    truncation = truncation_from_wire(message)
    if truncation is not None and message.truncation.side == tokenizer_pb2.TRUNCATION_SIDE_UNSPECIFIED:
        truncation = Truncation(True, truncation.max_tokens)
    return EmbeddingCall(
        context=context_from_wire(message.context, call_remaining_s=call_remaining_s),
        model=message.model,
        inputs=EmbeddingInputs(
            texts=tuple(message.texts),
            token_ids=tuple(tuple(each.ids) for each in message.token_ids),
            truncation=truncation or (Truncation(True) if message.truncate else None),
            split_special_tokens=message.split_special_tokens,
        ),
        options=embedding_options_from_wire(message.options),
    )


def conversation_from_wire(message: tokenizer_pb2.Conversation, path: str = "conversation") -> Conversation:
    """A conversation, its tools and calls in the form templates expect."""
    if message.required_tool not in ("", *(("*",) if message.tools else ()), *(tool.name for tool in message.tools)):
        allowed = "the name of a tool, or '*' for any of them" if message.tools else "there are no tools to call"
        raise InvalidRequest.of(f"{path}.required_tool", f"{message.required_tool!r:.80} is not allowed: {allowed}")
    return Conversation(
        messages=tuple(_message(m, f"{path}.messages[{i}]") for i, m in enumerate(message.messages)),
        tools=tuple(_tool(tool, f"{path}.tools[{i}]") for i, tool in enumerate(message.tools)),
        documents=tuple(
            _json_object(text, f"{path}.documents_json[{i}]") for i, text in enumerate(message.documents_json)
        ),
        template_arguments=(
            _json_object(message.template_arguments_json, f"{path}.template_arguments_json")
            if message.template_arguments_json
            else {}
        ),
        add_generation_prompt=message.add_generation_prompt if message.HasField("add_generation_prompt") else None,
        continue_final_message=message.continue_final_message,
        parallel_tool_calls=message.parallel_tool_calls if message.HasField("parallel_tool_calls") else True,
        required_tool=message.required_tool,
    )


def _input(message: tokenizer_pb2.TextRequest) -> str | tuple[int, ...] | Conversation:
    kind = message.WhichOneof("input")
    if kind == "text":
        return message.text
    if kind == "token_ids":
        return tuple(message.token_ids.ids)
    if kind == "conversation":
        return conversation_from_wire(message.conversation)
    raise InvalidRequest.of("input", "one of text, token_ids and conversation is needed")


def _message(message: tokenizer_pb2.ChatMessage, path: str) -> ChatMessage:
    if not message.role:
        raise InvalidRequest.of(f"{path}.role", "is empty: a role such as system, user, assistant or tool is needed")
    return ChatMessage(
        role=message.role,
        content=message.content,
        name=message.name,
        tool_calls=tuple(_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning,
    )


def _call(call: tokenizer_pb2.ToolCall, path: str) -> dict[str, Any]:
    arguments = _json_object(call.arguments or "{}", f"{path}.arguments")
    found: dict[str, Any] = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **found} if call.id else found


def _tool(tool: tokenizer_pb2.ToolDefinition, path: str) -> dict[str, Any]:
    if not tool.name:
        raise InvalidRequest.of(f"{path}.name", "is empty: a function's name is needed")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = _json_object(tool.parameters_json, f"{path}.parameters_json")
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _json_object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_such_number, parse_float=_finite)
    except RecursionError:
        raise _nested_too_deeply(text, path) from None
    except ValueError as error:
        raise InvalidRequest.of(path, f"{text[:80]!r} is not JSON ({error})") from None
    if nested_beyond(value, MAX_JSON_LEVELS):
        raise _nested_too_deeply(text, path)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest.of(path, f"{text[:80]!r} has half of a surrogate pair, which no text may have") from None
    if not isinstance(value, dict):
        raise InvalidRequest.of(path, f"{text[:80]!r} is not a JSON object")
    return value


def _nested_too_deeply(text: str, path: str) -> InvalidRequest:
    return InvalidRequest.of(path, f"{text[:80]!r} is nested too deeply: at most {MAX_JSON_LEVELS} levels are allowed")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:20]} is too large for a number")
    return value


def _no_such_number(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
