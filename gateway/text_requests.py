"""A text request as the wire has it, made from plain values; opaque to those who only pass it on."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenwire.errors import InvalidRequest
from tokenwire.parsed import ToolCall
from tokenwire.requests import GenerationOptions
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import shared_options_to_wire, tool_call_to_wire

TextRequest = tokenizer_pb2.TextRequest
"""Its context is filled in when it is sent."""

MAX_REPEATED_BYTES = 16 * 2**20
"""Of what each prompt's request says again for itself, in all: options, above all a schema or a list of token ids."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the assistant made."""
    tool_call_id: str = ""
    """Which call a tool's message answers."""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters_json: str = ""
    """JSON schema of its arguments; empty: it takes none."""
    strict: bool = False
    """Calls of it must keep to the schema."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to answer, at least one, and the functions that may be called for it."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    parallel_tool_calls: bool = True
    """Whether one answer may hold several calls."""
    required_tool: str = ""
    """The answer is a call of this tool; "*": of any; empty: the model decides."""
    documents_json: tuple[str, ...] = ()
    """For templates that take them, each a JSON object."""
    template_arguments_json: str = ""
    """Extra variables of the template, a JSON object; empty: none."""
    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the header of the assistant's turn; None: unless the last message is continued."""
    continue_final_message: bool = False


Prompt = str | tuple[int, ...] | Conversation
"""A text, token ids, or a conversation."""


def refuse_repeated(num_prompts: int, shared: TextRequest) -> None:
    """Raise InvalidRequest where so many prompts are too many to repeat this for each. `shared`: without a prompt."""
    num_bytes = shared.ByteSize()
    if num_prompts > 1 and num_prompts * num_bytes > MAX_REPEATED_BYTES:
        raise InvalidRequest.of(
            "options",
            f"{num_bytes} bytes for each of {num_prompts} prompts are too many: at most {MAX_REPEATED_BYTES} in all; "
            "send fewer prompts in one call, or shorter options",
            reason="OPTIONS_TOO_LARGE",
        )


def text_requests(
    prompts: Sequence[Prompt],
    *,
    model: str,
    options: GenerationOptions,
    truncate: bool = False,
    cache_salt: str = "",
    split_special_tokens: bool = False,
) -> list[TextRequest]:
    """One request for each prompt. Token ids must fit 32 bits. Raises as `refuse_repeated`."""
    shared = TextRequest(
        model=model,
        options=shared_options_to_wire(options),
        truncate=truncate,
        cache_salt=cache_salt,
        split_special_tokens=split_special_tokens,
    )
    refuse_repeated(len(prompts), shared)
    return [_with_prompt(shared, prompt) for prompt in prompts]


def _with_prompt(shared: TextRequest, prompt: Prompt) -> TextRequest:
    request = TextRequest()
    request.CopyFrom(shared)
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, Conversation):
        _add_conversation(request.conversation, prompt)
    else:
        request.token_ids.SetInParent()
        request.token_ids.ids.extend(prompt)
    return request


def _add_conversation(found: tokenizer_pb2.Conversation, conversation: Conversation) -> None:
    for message in conversation.messages:
        found.messages.add(
            role=message.role,
            content=message.content,
            name=message.name,
            tool_calls=map(tool_call_to_wire, message.tool_calls),
            tool_call_id=message.tool_call_id,
            reasoning=message.reasoning,
        )
    for tool in conversation.tools:
        found.tools.add(
            name=tool.name, description=tool.description, parameters_json=tool.parameters_json, strict=tool.strict
        )  # fmt: skip
    if not conversation.parallel_tool_calls:
        found.parallel_tool_calls = False
    found.required_tool = conversation.required_tool
    found.documents_json.extend(conversation.documents_json)
    found.template_arguments_json = conversation.template_arguments_json
    if conversation.add_generation_prompt is not None:
        found.add_generation_prompt = conversation.add_generation_prompt
    found.continue_final_message = conversation.continue_final_message
