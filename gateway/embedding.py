"""Calls to embed, whichever protocol they came by: room, time limits, and the way to a tokenizer tier.

A call that a protocol without a message limit brings is sent down in several, so that no answer is too large and none
holds the others up. Does not know protocols.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from gateway.estimates import BYTES_PER_TOKEN
from gateway.generation import Caller, Generation
from gateway.limits.limiter import Lease
from gateway.metrics import RequestRecord
from tokenwire.embedding_wire import embedding_options_to_wire, vectors_from_wire
from tokenwire.embeddings import EmbeddingOptions, Vector, refuse_inputs
from tokenwire.errors import TokenwireError
from tokenwire.field_names import with_fields_renamed
from tokenwire.requests import FinishReason, Terminal, Usage, numbered
from tokenwire.tasks import all_of
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import context_to_wire, usage_from_wire

CALL_INPUTS = 96
"""Inputs of one call to a tokenizer tier: vectors of ten thousand values fit gRPC's 4 MiB."""
MAX_CALLS = 4
"""Of one request at once."""
GIVE_UP_S = 0.05
"""How much longer than a call's own limit the tier below is waited for: its answer says more."""

INPUT_FIELD = re.compile(r"(texts|token_ids)\[(\d+)\]")

Input = str | tuple[int, ...]
"""A text, or token ids."""


async def pass_on(
    generation: Generation, record: RequestRecord, caller: Caller, request: tokenizer_pb2.EmbedRequest
) -> tokenizer_pb2.EmbedResponse:
    """One message as it came, to a tokenizer tier. Fills in its context. Raises the tier's error."""
    field = "token_ids" if request.token_ids else "texts"
    refuse_inputs([len(text) for text in request.texts] + [len(each.ids) for each in request.token_ids], field)
    num_inputs = len(request.texts) + len(request.token_ids)
    record.num_prompts = num_inputs
    estimate = -(-request.ByteSize() // BYTES_PER_TOKEN)
    with _charged(generation, caller, request.model, estimate) as lease:
        with generation.backends.room.taken(num_inputs, caller.context.priority):
            response = await _call(generation, caller, request)
        usage = usage_from_wire(response.usage)
        lease.settle(usage.prompt_tokens, 0)
    _count(generation, record, num_inputs, usage)
    return response


async def embed(
    generation: Generation,
    record: RequestRecord,
    caller: Caller,
    inputs: Sequence[Input],
    *,
    model: str,
    options: EmbeddingOptions,
    truncate: bool = False,
) -> tuple[list[Vector], Usage]:
    """The vectors, in the order of the inputs, all of one kind, and the tokens read. Raises the tier's error."""
    record.num_prompts = len(inputs)
    wire_options = embedding_options_to_wire(options)
    places = asyncio.Semaphore(MAX_CALLS)

    async def call(number: int, some: Sequence[Input]) -> tokenizer_pb2.EmbedResponse:
        request = tokenizer_pb2.EmbedRequest(model=model, options=wire_options, truncate=truncate)
        for each in some:
            if isinstance(each, str):
                request.texts.append(each)
            else:
                request.token_ids.add(ids=each)
        async with places:
            try:
                return await _call(generation, _numbered(caller, number), request)
            except TokenwireError as error:
                raise with_fields_renamed(error, lambda field: _moved(field, number * CALL_INPUTS)) from None

    estimate = sum(len(each) if not isinstance(each, str) else -(-len(each) // BYTES_PER_TOKEN) for each in inputs)
    with _charged(generation, caller, model, estimate) as lease:
        with generation.backends.room.taken(len(inputs), caller.context.priority):
            responses = await all_of(call(number, some) for number, some in enumerate(_runs(inputs)))
        usage = sum((usage_from_wire(response.usage) for response in responses), Usage())
        lease.settle(usage.prompt_tokens, 0)
    _count(generation, record, len(inputs), usage)
    return [vector for response in responses for vector in vectors_from_wire(response.embeddings)], usage


@contextmanager
def _charged(generation: Generation, caller: Caller, model: str, num_tokens: int) -> Iterator[Lease]:
    """One request of the tenant's while the block runs, for a model that can be asked. Raises Overloaded.

    Asked before there is room, so that nobody makes way in vain: raises as `Backends.require_tier`.

    What fails is given back; what the caller takes back stays charged as estimated.
    """
    lease = generation.backends.charge_call(caller.context.tenant, num_tokens)
    try:
        generation.backends.require_tier(model)
        yield lease
    except TokenwireError:
        lease.give_back()
        raise
    finally:
        lease.settle(None, 0)


async def _call(
    generation: Generation, caller: Caller, request: tokenizer_pb2.EmbedRequest
) -> tokenizer_pb2.EmbedResponse:
    """One call to a tokenizer tier, within the caller's time."""
    context = caller.context
    request.context.CopyFrom(context_to_wire(context))
    remaining_s = context.remaining_s()
    timeout_s = None if remaining_s is None else remaining_s + GIVE_UP_S
    response: tokenizer_pb2.EmbedResponse = await generation.backends.call(
        "Embed", request, timeout_s=timeout_s, request_id=context.request_id
    )
    return response


def _count(generation: Generation, record: RequestRecord, num_inputs: int, usage: Usage) -> None:
    generation.metrics.embedded.inc(num_inputs)
    generation.metrics.embedded_tokens.inc(usage.prompt_tokens)
    record.ended(Terminal(FinishReason.LENGTH, usage))


def _runs(inputs: Sequence[Input]) -> Iterator[Sequence[Input]]:
    for start in range(0, len(inputs), CALL_INPUTS):
        yield inputs[start : start + CALL_INPUTS]


def _numbered(caller: Caller, number: int) -> Caller:
    """The calls of one request have ids of their own: the request's, and `/number`."""
    if not number:
        return caller
    return replace(caller, context=numbered(caller.context, f"/{number}"))


def _moved(field: str, offset: int) -> str:
    """The field of one of a call's inputs under its place in the whole request."""
    found = INPUT_FIELD.match(field)
    return f"{found[1]}[{int(found[2]) + offset}]{field[found.end() :]}" if found else field
