"""POST /generate: many inputs, as many outputs, in order; one bad input does not sink the others.

    {"inputs": ["…", …], "max_tokens": 16, "temperature": 0, "stream": false, "truncate": false}
    → {"outputs": [{"index": 0, "text": "…", "finish_reason": "length", "usage": {…}, "error": null}, …]}

`finish_reason` is one of stop_token, stop_string, length, deadline, cancelled, error; with deadline the text until then
is there, with error `error` says what, in the shape of every error here. With a single input an error is the answer's
own status. Streamed, each event is `{"index", "text"}`, an output's last one carries the other fields as well, and
`[DONE]` ends the stream.

With `logprobs` (0 to 20: how many of the likeliest tokens beside each) an output has `logprobs`, one object per token:
{"token_id", "text", "logprob", "text_offset", "top": [{"token_id", "text", "logprob"}, …]}; with `prompt_logprobs` the
same for the input's tokens from the second on. Streamed, an event has those of its own text, if any.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, WithJsonSchema

from gateway.generation import Generation
from gateway.http.body import invalid, read_body, refuse_extras
from gateway.http.calls import HttpCall
from gateway.http.errors import error_object, error_of
from gateway.http.fields import PROMPTS_SCHEMA, GenerationFields, prompts_of
from gateway.http.front import Handler
from gateway.http.logprobs import plain_logprobs
from gateway.http.openai_usage import usage_object
from gateway.http.sse import DONE, event_stream, json_text
from gateway.streams import Event
from tokenwire.errors import TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.requests import Terminal
from tokenwire.sampling import MAX_LOGPROBS

PROMPT_FIELD = "inputs"
NumLikeliest = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS})]


class GenerateBody(GenerationFields):
    """The body."""

    inputs: Annotated[Any, WithJsonSchema(PROMPTS_SCHEMA)]
    logprobs: NumLikeliest | None = None
    prompt_logprobs: NumLikeliest | None = None


def generate_handler(generation: Generation) -> Handler:
    """What answers POST /generate."""

    async def generate(request: Request) -> Response:
        """Continue one or many inputs."""
        with HttpCall(generation, request, "http.generate") as call:
            body = await read_body(request, GenerateBody, generation.settings)
            return await _answer(generation, call, body)

    return generate


async def _answer(generation: Generation, call: HttpCall, body: GenerateBody) -> Response:
    refuse_extras(body, {})
    if body.n not in (None, 1):
        raise invalid("n", f"{body.n} is not allowed here: outputs stand beside inputs; give an input several times")
    prompts = prompts_of(body.inputs, PROMPT_FIELD, generation.settings.max_prompts)
    model = body.model or ""
    options = body.options(logprobs=body.logprobs, prompt_logprobs=body.prompt_logprobs)
    requests = body.requests(prompts, options)
    call.open(body, requests, model)
    chunks = GenerateChunks(single=len(prompts) == 1)
    if body.stream:
        return await event_stream(call, chunks, PROMPT_FIELD)
    texts: list[list[str]] = [[] for _ in prompts]
    logprobs = [SequenceLogprobs() for _ in prompts]
    outputs: list[dict[str, Any]] = [{} for _ in prompts]
    while events := await call.next_events():
        for event in events:
            texts[event.prompt].append(event.text)
            if event.logprobs is not None:
                logprobs[event.prompt].extend(event.logprobs)
            if event.terminal is not None:
                if chunks.single and (error := error_of(event.terminal, openai=False)) is not None:
                    raise error
                outputs[event.prompt] = _end(event.prompt, event.terminal)
    for index, (output, pieces) in enumerate(zip(outputs, texts, strict=True)):
        outputs[index] = {"index": index, "text": "".join(pieces), **output}
        if body.logprobs is not None:
            outputs[index]["logprobs"] = plain_logprobs(logprobs[index].tokens)
        if body.prompt_logprobs is not None:
            outputs[index]["prompt_logprobs"] = plain_logprobs(logprobs[index].prompt)
    return JSONResponse({"outputs": outputs})


class GenerateChunks:
    """Writes one streamed answer."""

    def __init__(self, *, single: bool) -> None:
        self.single = single
        """With one input its error is the answer's."""

    def render(self, events: Sequence[Event]) -> tuple[str, TokenwireError | None]:
        """One event per output with something new."""
        pieces: list[str] = []
        for event in events:
            head = f'data: {{"index":{event.prompt},"text":{json_text(event.text)}{_logprobs_text(event.logprobs)}'
            if event.terminal is None:
                pieces.append(head + "}\n\n")
                continue
            error = error_of(event.terminal, openai=False)
            if self.single and error is not None:
                if event.text:
                    pieces.append(head + "}\n\n")
                return "".join(pieces), error
            pieces.append(f"{head},{json_text(_end(event.prompt, event.terminal))[1:]}\n\n")
        return "".join(pieces), None

    def around_text(self, prompt: int, choice: int) -> tuple[str, str]:
        """What stands around a text alone of this output."""
        return f'data: {{"index":{prompt},"text":', "}\n\n"

    def end(self) -> str:
        """The end mark."""
        return DONE


def _logprobs_text(logprobs: SequenceLogprobs | None) -> str:
    """The fields of an event that has some."""
    if logprobs is None:
        return ""
    tokens = f',"logprobs":{json_text(plain_logprobs(logprobs.tokens))}' if logprobs.tokens else ""
    return tokens + (f',"prompt_logprobs":{json_text(plain_logprobs(logprobs.prompt))}' if logprobs.prompt else "")


def _end(index: int, terminal: Terminal) -> dict[str, Any]:
    error = error_of(terminal, openai=False)
    return {
        "finish_reason": terminal.reason.value,
        "usage": usage_object(terminal.usage),
        "error": None if error is None else error_object(error, f"{PROMPT_FIELD}[{index}]"),
    }
