"""GenerationService: what gRPC clients call.

Speaks the wire; generation, time limits and the tiers below are others' business. A client that cancels or goes away
cancels its handler here, whose `finally` takes its prompts back below.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from gateway.embedding import pass_on
from gateway.generation import Caller, Generation
from gateway.metadata import REQUEST_ID, TRACEPARENT, metadata_value
from gateway.metrics import RequestRecord
from gateway.sessions import TextServerSession
from gateway.streams import Event, TextStream
from gateway.text_requests import TextRequest, refuse_repeated
from gateway.token_calls import estimated_tokens, refuse_too_many
from tokenwire.errors import Internal, InvalidRequest, TokenwireError
from tokenwire.field_names import with_fields_renamed
from tokenwire.requests import RequestContext
from tokenwire.session_server import run_session
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, tokenizer_pb2
from tokenwire.wire import context_from_wire, logprob_to_wire, terminal_to_wire, tool_call_to_wire


class GenerationService(gateway_pb2_grpc.GenerationServiceServicer):
    """The gateway's gRPC side."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._backends = generation.backends
        self._sessions: set[TextServerSession] = set()
        self._epoch = time.time_ns()

    def drain(self, grace_s: float) -> None:
        """Ask the clients of all sessions to go elsewhere."""
        for session in list(self._sessions):
            session.drain("the gateway is shutting down", grace_s)

    async def Generate(self, request: gateway_pb2.GenerateRequest, context: grpc.aio.ServicerContext) -> None:
        """One prompt, or several whose streams are merged and tagged by index."""
        with self._generation.record("grpc.generate") as record:
            who = await self._begin(record, request.context, request.model, context)
            self._generation.refuse_prompt_count(len(request.prompts), "prompts")
            single = len(request.prompts) == 1
            shared = _shared_request(request)
            refuse_repeated(len(request.prompts), shared)
            requests = [_text_request(shared, prompt, index, single) for index, prompt in enumerate(request.prompts)]
            stream = self._open(record, who, requests, context)
            try:
                while events := await stream.next_events():
                    for event in events:
                        for response in _generate_responses(event, raise_error=single):
                            await context.write(response)
            finally:
                stream.close()

    async def Chat(self, request: gateway_pb2.ChatRequest, context: grpc.aio.ServicerContext) -> None:
        """The next message of a conversation."""
        with self._generation.record("grpc.chat") as record:
            who = await self._begin(record, request.context, request.model, context)
            text_request = TextRequest(
                model=request.model,
                conversation=request.conversation,
                options=request.options,
                truncate=request.truncate,
                cache_salt=request.cache_salt,
                split_special_tokens=request.split_special_tokens,
                truncation=request.truncation if request.HasField("truncation") else None,
            )
            stream = self._open(record, who, [text_request], context)
            try:
                while events := await stream.next_events():
                    for event in events:
                        for response in _chat_responses(event):
                            await context.write(response)
            finally:
                stream.close()

    async def Session(self, requests: Any, context: grpc.aio.ServicerContext) -> None:
        """Many requests on one stream."""
        self._generation.refuse_when_draining()
        session = TextServerSession(self._generation, self._epoch, self._sessions.discard)
        self._sessions.add(session)
        settings = self._generation.settings
        await run_session(
            requests,
            context,
            session,
            max_age_s=settings.max_connection_age_s,
            age_grace_s=settings.max_connection_age_grace_s,
        )

    async def Tokenize(
        self, request: tokenizer_pb2.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.TokenizeResponse:
        """Texts to token ids, by the tier below."""
        response: tokenizer_pb2.TokenizeResponse = await self._pass_on("Tokenize", request, context)
        return response

    async def Detokenize(
        self, request: tokenizer_pb2.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.DetokenizeResponse:
        """Token ids to text, by the tier below."""
        response: tokenizer_pb2.DetokenizeResponse = await self._pass_on("Detokenize", request, context)
        return response

    async def StreamDetokenize(
        self, requests: AsyncIterator[tokenizer_pb2.StreamDetokenizeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[tokenizer_pb2.StreamDetokenizeResponse]:
        """Token ids to text as they come, by the tier below."""
        kept = _Kept(requests)
        async with aclosing(self._pass_stream("StreamDetokenize", kept.read(), "", context)) as responses:
            async for response in responses:
                yield response
        if kept.error is not None:
            raise kept.error

    async def ApplyChatTemplate(
        self, request: tokenizer_pb2.ApplyChatTemplateRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.ApplyChatTemplateResponse:
        """A conversation to a prompt, by the tier below."""
        response: tokenizer_pb2.ApplyChatTemplateResponse = await self._pass_on("ApplyChatTemplate", request, context)
        return response

    async def CountTokens(
        self, request: tokenizer_pb2.CountTokensRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.CountTokensResponse:
        """How many token ids there are, by the tier below."""
        response: tokenizer_pb2.CountTokensResponse = await self._pass_on("CountTokens", request, context)
        return response

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        """The tokenizer's files, by the tier below."""
        async with aclosing(self._pass_stream("GetTokenizer", request, request.model, context)) as responses:
            async for response in responses:
                yield response

    async def Embed(
        self, request: tokenizer_pb2.EmbedRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.EmbedResponse:
        """Vectors of texts or token ids."""
        with self._generation.record("grpc.embed") as record:
            who = await self._begin(record, request.context, request.model, context)
            return await pass_on(self._generation, record, self._caller(record, who, context), request)

    async def ListModels(
        self, request: tokenizer_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> tokenizer_pb2.ListModelsResponse:
        """What can be asked for, by the tier below."""
        response: tokenizer_pb2.ListModelsResponse = await self._pass_on("ListModels", request, context)
        return response

    async def _pass_on(self, method: str, request: Any, context: grpc.aio.ServicerContext) -> Any:
        with self._generation.record(f"grpc.{method.lower()}") as record:
            model = "" if isinstance(request, tokenizer_pb2.ListModelsRequest) else request.model
            who = await self._begin(record, common_pb2.RequestContext(), model, context)
            refuse_too_many(request, self._generation.settings.max_prompts)
            with self._generation.charged_call(who, estimated_tokens(request)):
                return await self._backends.call(
                    method, request, timeout_s=context.time_remaining(), request_id=who.request_id
                )

    async def _pass_stream(
        self, method: str, request: Any, model: str, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[Any]:
        with self._generation.record(f"grpc.{method.lower()}") as record:
            who = await self._begin(record, common_pb2.RequestContext(), model, context)
            timeout_s = context.time_remaining()
            with self._generation.charged_call(who):
                answers = self._backends.stream(method, request, timeout_s=timeout_s, request_id=who.request_id)
                async with aclosing(answers):
                    async for response in answers:
                        yield response

    async def _begin(
        self, record: RequestRecord, message: common_pb2.RequestContext, model: str, context: grpc.aio.ServicerContext
    ) -> RequestContext:
        """Find or draw the request id, send it back, and check who asks."""
        message.request_id = message.request_id or metadata_value(context, REQUEST_ID)
        message.traceparent = message.traceparent or metadata_value(context, TRACEPARENT)
        who = context_from_wire(message)
        record.request_id = who.request_id
        await context.send_initial_metadata(((REQUEST_ID, who.request_id),))
        record.asks_for(model)
        return who

    def _open(
        self, record: RequestRecord, who: RequestContext, requests: list[TextRequest], context: grpc.aio.ServicerContext
    ) -> TextStream:
        return self._generation.open(record, self._caller(record, who, context), requests)

    def _caller(self, record: RequestRecord, who: RequestContext, context: grpc.aio.ServicerContext) -> Caller:
        """Who asks, with the call's own time limit counted in."""
        left_s = context.time_remaining()
        return self._generation.caller(record, who, None if left_s is None else time.monotonic() + left_s)


class _Kept:
    """A client's messages on their way down. What is wrong with one ends them, and is kept for the answer."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests
        self.error: TokenwireError | None = None

    async def read(self) -> AsyncIterator[Any]:
        """The messages."""
        try:
            async for request in self._requests:
                yield request
        except TokenwireError as error:
            self.error = error


def _shared_request(request: gateway_pb2.GenerateRequest) -> TextRequest:
    """What the requests of all its prompts say."""
    return TextRequest(
        model=request.model,
        options=request.options,
        truncate=request.truncate,
        cache_salt=request.cache_salt,
        split_special_tokens=request.split_special_tokens,
        truncation=request.truncation if request.HasField("truncation") else None,
    )


def _text_request(shared: TextRequest, prompt: gateway_pb2.Prompt, index: int, single: bool) -> TextRequest:
    text_request = TextRequest()
    text_request.CopyFrom(shared)
    form = prompt.WhichOneof("form")
    if form == "text":
        text_request.text = prompt.text
    elif form == "token_ids":
        text_request.token_ids.CopyFrom(prompt.token_ids)
    elif single:
        raise InvalidRequest.of(f"prompts[{index}]", "is empty: give text or token_ids")
    return text_request


def _delta(event: Event) -> gateway_pb2.Delta:
    delta = gateway_pb2.Delta(text=event.text, num_tokens=event.num_tokens, token_ids=event.token_ids)
    if event.logprobs is not None:
        delta.logprobs.extend(map(logprob_to_wire, event.logprobs.tokens))
        delta.prompt_logprobs.extend(map(logprob_to_wire, event.logprobs.prompt))
    if event.parsed is not None:
        delta.reasoning = event.parsed.reasoning
        delta.tool_calls.extend(map(tool_call_to_wire, event.parsed.tool_calls))
    return delta


def _has_delta(event: Event) -> bool:
    return bool(event.text or event.num_tokens or event.logprobs or event.parsed)


def _error_of(event: Event) -> TokenwireError | None:
    if event.terminal is None or event.terminal.reason.value != "error":
        return None
    return event.terminal.error or Internal("the request failed below, which did not say why")


def _generate_responses(event: Event, *, raise_error: bool) -> Iterator[gateway_pb2.GenerateResponse]:
    """One message; where an error is the call's status, what came with it before it is raised."""
    terminal, error = event.terminal, _error_of(event)
    if terminal is not None and error is not None:
        error = with_fields_renamed(error, lambda field: _prompt_field(field, event.prompt))
        terminal = None if raise_error else replace(terminal, error=error)
    response = gateway_pb2.GenerateResponse(index=event.prompt, choice=event.choice)
    if _has_delta(event):
        response.delta.CopyFrom(_delta(event))
    if terminal is not None:
        response.finish.CopyFrom(terminal_to_wire(terminal))
    if error is None or not raise_error:
        yield response
        return
    if response.HasField("delta"):
        yield response
    raise error


def _prompt_field(field: str, index: int) -> str:
    """The name in a GenerateRequest of a TextRequest's field: `text` → `prompts[2].text`."""
    first = field.partition(".")[0]
    if first == "input":
        return f"prompts[{index}]"
    return f"prompts[{index}].{field}" if first in ("text", "token_ids") else field


def _chat_responses(event: Event) -> Iterator[gateway_pb2.ChatResponse]:
    """As `_generate_responses`."""
    error = _error_of(event)
    response = gateway_pb2.ChatResponse(choice=event.choice)
    if _has_delta(event):
        response.delta.CopyFrom(_delta(event))
    if event.terminal is not None and error is None:
        response.finish.CopyFrom(terminal_to_wire(event.terminal))
    if error is None or response.HasField("delta"):
        yield response
    if error is not None:
        raise error
