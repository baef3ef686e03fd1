"""POST /v1/chat/completions, as OpenAI's API reference has it.

Source: https://platform.openai.com/docs/api-reference/chat; what only a chat template knows has the names that vLLM's
server gave it. Stricter in one thing: a field that is unknown or not built is refused with its name, never ignored.
"""

from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from gateway.generation import Generation
from gateway.http.body import invalid, read_body, refuse_extras
from gateway.http.bounds import MAX_DOCUMENTS, MAX_KEYS, MAX_MESSAGES, MAX_TOOLS, at_most
from gateway.http.calls import HttpCall
from gateway.http.chat_answers import message_object, reasoning_delta, tool_calls_delta
from gateway.http.chat_messages import ChatMessageFields, ToolFields, json_text, message_of, tools_of
from gateway.http.fields import UNBUILT_STREAM_OPTIONS, AccountFields, GenerationFields, StreamOptions, TokenCount
from gateway.http.front import Handler
from gateway.http.logprobs import chat_logprobs
from gateway.http.openai_chunks import ChunkShape, OpenAIChunks, answer_head, collect
from gateway.http.sse import event_stream
from gateway.text_requests import Conversation
from tokenwire.sampling import MAX_LOGPROBS, StopParams

UNBUILT_CHAT: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
SHAPE = ChunkShape(
    before_text='"delta":{"content":',
    after_text="}",
    first='"delta":{"role":"assistant","content":""}',
    last='"delta":{}',
    logprobs=chat_logprobs,
    before=reasoning_delta,
    behind=tool_calls_delta,
)


class ChatBody(GenerationFields, AccountFields):
    """The body."""

    messages: Annotated[list[ChatMessageFields], at_most(MAX_MESSAGES)]
    tools: Annotated[list[ToolFields], at_most(MAX_TOOLS)] | None = None
    tool_choice: Any = None
    """"none": the tools are not shown to the model; "required", or a function's name: nothing but such calls come."""
    parallel_tool_calls: bool | None = None
    """False: the answer ends with its first call."""
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS})] | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(MAX_KEYS)] | None = None
    """Extra variables of the chat template."""
    documents: Annotated[list[Annotated[dict[str, Any], at_most(MAX_KEYS)]], at_most(MAX_DOCUMENTS)] | None = None
    """For templates that take them."""
    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the header of the assistant's turn; true unless the last message is continued."""
    continue_final_message: bool | None = None
    """The model goes on with the last message instead of answering it."""


def chat_handler(generation: Generation) -> Handler:
    """What answers POST /v1/chat/completions."""

    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        with HttpCall(generation, request, "http.chat") as call:
            body = await read_body(request, ChatBody, generation.settings)
            return await _answer(generation, call, body)

    return chat_completions


async def _answer(generation: Generation, call: HttpCall, body: ChatBody) -> Response:
    refuse_extras(body, UNBUILT_CHAT)
    include_usage = refuse_stream_options(body.stream_options, bool(body.stream))
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise invalid("max_completion_tokens", f"{body.max_completion_tokens} contradicts max_tokens {body.max_tokens}")
    for violation in StopParams(max_tokens=body.max_completion_tokens).violations():
        raise invalid("max_completion_tokens", violation.description)
    options = body.options(max_tokens=body.max_completion_tokens, logprobs=_num_logprobs(body))
    call.open(body, body.requests([_conversation(body)], options), body.model or "")
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    head = answer_head(generation.backends, kind, "chatcmpl", body.model or "", body.service_tier)
    if body.stream:
        chunks = OpenAIChunks(SHAPE, head, num_prompts=1, num_choices=options.num_choices, include_usage=include_usage)
        return await event_stream(call, chunks, "messages")
    outputs, usage = await collect(call, 1, options.num_choices)
    choices = [
        {
            "index": index,
            "message": message_object("".join(output.texts), output.parsed),
            "logprobs": None if options.logprobs is None else chat_logprobs(output.logprobs),
            "finish_reason": output.reason,
        }
        for index, output in enumerate(outputs)
    ]
    return JSONResponse({**head.fields(), "choices": choices, "usage": usage})


def _conversation(body: ChatBody) -> Conversation:
    """What the chat template gets. Raises InvalidRequest naming the field."""
    if not body.messages:
        raise invalid("messages", "[] is not allowed: at least one message is needed")
    tools, required_tool = tools_of(body.tools or (), body.tool_choice)
    return Conversation(
        messages=tuple(message_of(message, index) for index, message in enumerate(body.messages)),
        tools=tools,
        required_tool=required_tool,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        documents_json=tuple(json_text(found, f"documents[{i}]") for i, found in enumerate(body.documents or ())),
        template_arguments_json=(
            json_text(body.chat_template_kwargs, "chat_template_kwargs") if body.chat_template_kwargs else ""
        ),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
    )


def _num_logprobs(body: ChatBody) -> int | None:
    """How many of the likeliest tokens are asked for; None where log-probabilities are not. Raises InvalidRequest."""
    num_top = body.top_logprobs or 0
    if not 0 <= num_top <= MAX_LOGPROBS:
        raise invalid("top_logprobs", f"{num_top} is not allowed: an integer from 0 to {MAX_LOGPROBS}")
    if num_top and not body.logprobs:
        raise invalid("top_logprobs", f"{num_top} is not allowed without logprobs true")
    return num_top if body.logprobs else None


def refuse_stream_options(stream_options: StreamOptions | None, stream: bool) -> bool:
    """Whether usage is asked for. Raises InvalidRequest for options without a stream, and unknown ones."""
    if stream_options is None:
        return False
    if not stream:
        raise invalid("stream_options", "is allowed with stream true alone")
    refuse_extras(stream_options, UNBUILT_STREAM_OPTIONS, prefix="stream_options.")
    return stream_options.include_usage
