"""POST /v1/completions, as OpenAI's API reference has it: prompts as texts or token ids, one or many.

Source: https://platform.openai.com/docs/api-reference/completions. `max_tokens` absent means 16, as there.
"""

import secrets
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from gateway.generation import Generation
from gateway.http.body import invalid, read_body, refuse_extras
from gateway.http.calls import HttpCall
from gateway.http.fields import HARMLESS, GenerationFields, StreamOptions, prompts_of
from gateway.http.front import Handler
from gateway.http.logprobs import completion_logprobs
from gateway.http.openai_chat import refuse_stream_options
from gateway.http.openai_chunks import AnswerHead, ChunkShape, OpenAIChunks, collect
from gateway.http.sse import event_stream

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
"""As in OpenAI's reference."""

UNBUILT_COMPLETION: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "response_format": (None, {"type": "text"}),
    "suffix": (None,),
}

SHAPE = ChunkShape(
    object="text_completion",
    before_text='"text":',
    after_text="",
    first=None,
    last='"text":""',
    logprobs=completion_logprobs,
)


class CompletionBody(GenerationFields):
    """The body."""

    prompt: Any
    logprobs: int | None = None
    stream_options: StreamOptions | None = None


def completion_handler(generation: Generation) -> Handler:
    """What answers POST /v1/completions."""

    async def completions(request: Request) -> Response:
        """Continue one or many prompts."""
        with HttpCall(generation, request, "http.completions") as call:
            body = await read_body(request, CompletionBody, generation.settings.max_body_bytes)
            return await _answer(generation, call, body)

    return completions


async def _answer(generation: Generation, call: HttpCall, body: CompletionBody) -> Response:
    refuse_extras(body, UNBUILT_COMPLETION, HARMLESS)
    include_usage = refuse_stream_options(body.stream_options, bool(body.stream))
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise invalid("logprobs", f"{body.logprobs} is not allowed: an integer from 0 to {MAX_LOGPROBS}")
    options = body.options(max_tokens=DEFAULT_MAX_TOKENS, logprobs=body.logprobs)
    prompts = prompts_of(body.prompt, "prompt")
    generation.refuse_prompt_count(len(prompts), "prompt")
    requests = body.requests(prompts, options)
    call.open(body, requests, body.model or "")
    head = AnswerHead(f"cmpl-{secrets.token_hex(12)}", body.model or generation.backends.default_model)
    if body.stream:
        chunks = OpenAIChunks(
            SHAPE, head, num_prompts=len(prompts), num_choices=options.num_choices, include_usage=include_usage
        )
        return await event_stream(call, chunks, "prompt")
    outputs, usage = await collect(call, len(prompts), options.num_choices)
    choices = [
        {
            "index": index,
            "text": "".join(output.texts),
            "logprobs": None if options.logprobs is None else completion_logprobs(output.logprobs),
            "finish_reason": output.reason,
        }
        for index, output in enumerate(outputs)
    ]
    answer = {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model}
    return JSONResponse({**answer, "choices": choices, "usage": usage})
