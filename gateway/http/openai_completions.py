"""POST /v1/completions, as OpenAI's API reference has it: prompts as texts or token ids, one or many.

Source: https://platform.openai.com/docs/api-reference/completions. `max_tokens` absent means 16, as there; 0 is allowed
with `echo` alone, and says only what the prompt's tokens were worth.
"""

from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, WithJsonSchema

from gateway.generation import Generation
from gateway.http.body import invalid, read_body, refuse_extras
from gateway.http.calls import HttpCall
from gateway.http.echoes import Echo, echoes_of
from gateway.http.fields import PROMPTS_SCHEMA, AccountFields, GenerationFields, StreamOptions, prompts_of
from gateway.http.front import Handler
from gateway.http.logprobs import completion_logprobs
from gateway.http.openai_chat import refuse_stream_options
from gateway.http.openai_chunks import ChunkShape, CollectedOutput, OpenAIChunks, answer_head, collect
from gateway.http.sse import event_stream
from gateway.token_texts import TokenTexts
from tokenwire.requests import GenerationOptions
from tokenwire.sampling import MAX_TOKENS

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
"""As in OpenAI's reference."""
OBJECT = "text_completion"

UNBUILT_COMPLETION: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "store": (None, False),
    "suffix": (None,),
}

SHAPE = ChunkShape(before_text='"text":', after_text="", first=None, last='"text":""', logprobs=completion_logprobs)


class CompletionBody(GenerationFields, AccountFields):
    """The body."""

    prompt: Annotated[Any, WithJsonSchema(PROMPTS_SCHEMA)]
    max_tokens: Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_TOKENS})] | None = None
    logprobs: Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS})] | None = None
    """How many of the likeliest tokens are told beside each."""
    echo: bool | None = None
    """Each text begins with its prompt."""
    stream_options: StreamOptions | None = None


def completion_handler(generation: Generation) -> Handler:
    """What answers POST /v1/completions."""

    async def completions(request: Request) -> Response:
        """Continue one or many prompts."""
        with HttpCall(generation, request, "http.completions") as call:
            body = await read_body(request, CompletionBody, generation.settings)
            return await _answer(generation, call, body)

    return completions


async def _answer(generation: Generation, call: HttpCall, body: CompletionBody) -> Response:
    refuse_extras(body, UNBUILT_COMPLETION)
    include_usage = refuse_stream_options(body.stream_options, bool(body.stream))
    prompt_alone = _is_prompt_alone(body)
    options = _options(body, prompt_alone)
    prompts = prompts_of(body.prompt, "prompt", generation.settings.max_prompts)
    requests = body.requests(prompts, options)
    context = call.open(body, requests, body.model or "")
    echoes: list[Echo] = []
    if body.echo:  # asked for once the request is let in and paid for, while it is being answered
        asker = TokenTexts(generation.backends, context, body.model or "", bool(body.split_special_tokens))
        echoes = await echoes_of(prompts, asker, with_logprobs=body.logprobs is not None)
    head = answer_head(generation.backends, OBJECT, "cmpl", body.model or "", body.service_tier)
    if body.stream:
        chunks = OpenAIChunks(
            SHAPE,
            head,
            num_prompts=len(prompts),
            num_choices=options.num_choices,
            include_usage=include_usage,
            echoes=echoes,
            with_logprobs=body.logprobs is not None,
        )
        return await event_stream(call, chunks, "prompt")
    outputs, usage = await collect(call, len(prompts), options.num_choices)
    if prompt_alone:
        outputs = [CollectedOutput(prompt_logprobs=output.prompt_logprobs, reason="length") for output in outputs]
        usage = {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
    choices = [
        _choice(index, output, echoes[index // options.num_choices] if echoes else None, body.logprobs is not None)
        for index, output in enumerate(outputs)
    ]
    return JSONResponse({**head.fields(), "choices": choices, "usage": usage})


def _is_prompt_alone(body: CompletionBody) -> bool:
    """Whether nothing but the prompt is asked for. Raises InvalidRequest for what does not go with `echo`."""
    if body.echo and body.truncate:
        raise invalid("truncate", "is not allowed with echo: what of the prompt would be repeated?")
    if body.max_tokens != 0 or not body.echo:
        return False
    if body.stream:
        raise invalid("max_tokens", "0 is not allowed with stream: there is nothing to wait for")
    return True


def _options(body: CompletionBody, prompt_alone: bool) -> GenerationOptions:
    """How to generate. Raises InvalidRequest. Of a prompt alone one token is computed, and left out of the answer."""
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise invalid("logprobs", f"{body.logprobs} is not allowed: an integer from 0 to {MAX_LOGPROBS}")
    asked = body.model_copy(update={"max_tokens": 1}) if prompt_alone else body
    prompt_logprobs = body.logprobs if body.echo else None
    return asked.options(max_tokens=DEFAULT_MAX_TOKENS, logprobs=body.logprobs, prompt_logprobs=prompt_logprobs)


def _choice(index: int, output: CollectedOutput, echo: Echo | None, with_logprobs: bool) -> dict[str, Any]:
    """One output, its prompt before it where that is repeated."""
    text, logprobs = "".join(output.texts), None
    if with_logprobs:
        found = output.logprobs if echo is None else echo.behind(output.logprobs)
        logprobs = completion_logprobs(found)
        if echo is not None:
            repeated = echo.logprobs(output.prompt_logprobs)
            logprobs = {name: repeated[name] + values for name, values in logprobs.items()}
    return {
        "index": index,
        "text": text if echo is None else echo.text + text,
        "logprobs": logprobs,
        "finish_reason": output.reason,
    }
