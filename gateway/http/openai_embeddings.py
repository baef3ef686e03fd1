"""POST /v1/embeddings, as OpenAI's API reference has it: inputs as texts or token ids, one or many; floats or base64.

Source: https://platform.openai.com/docs/api-reference/embeddings. Fields of our own: pooling, normalize, truncate, and
who asks. base64 is of float32 values in little-endian order, as OpenAI's clients read them.
"""

import asyncio
import base64
import json
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import Field, WithJsonSchema

from gateway.embedding import embed
from gateway.generation import Generation
from gateway.http.body import Body, invalid, read_body, refuse_extras
from gateway.http.calls import context_of
from gateway.http.connection import connection_of
from gateway.http.fields import PROMPTS_SCHEMA, prompts_of
from gateway.http.front import Handler
from gateway.http.openai_usage import embedding_usage_object
from gateway.metrics import RequestRecord
from tokenwire.embeddings import MAX_INPUTS, EmbeddingOptions, Pooling, Vector, refuse_inputs
from tokenwire.errors import Cancelled
from tokenwire.requests import Usage

VECTORS_PER_TURN = 32
"""Vectors written between two turns of the event loop."""


class EmbeddingBody(Body):
    """The body."""

    input: Annotated[Any, WithJsonSchema(PROMPTS_SCHEMA)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None
    """Says something about the bill, and nothing about the answer: ignored."""
    pooling: Literal["mean", "last", "cls"] | None = None
    """Which positions count; absent: what the model was trained for."""
    normalize: bool | None = None
    """Scale to unit length; true unless given."""
    truncate: bool | None = None
    """Cut an input longer than the model takes at its end instead of refusing it."""
    priority: int | None = None
    tenant: str | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds the whole request may take."""


def embedding_handler(generation: Generation) -> Handler:
    """What answers POST /v1/embeddings."""

    async def embeddings(request: Request) -> Response:
        """Vectors of one or many inputs."""
        with generation.record("http.embeddings") as record:
            record.request_id = request.state.request_id
            body = await read_body(request, EmbeddingBody, generation.settings)
            return await _while_connected(request, _answer(generation, request, record, body))

    return embeddings


async def _while_connected(request: Request, answer: Any) -> Response:
    """The answer; the work for it is taken back when the client goes."""
    connection = connection_of(request.scope)
    working: asyncio.Task[Response] = asyncio.ensure_future(answer)
    gone = False

    def on_gone() -> None:
        nonlocal gone
        gone = True
        working.cancel()

    connection.watch(on_gone)
    try:
        return await working
    except asyncio.CancelledError:
        if gone:
            raise Cancelled("the client went away") from None
        raise
    finally:
        connection.release()
        working.cancel()


async def _answer(generation: Generation, request: Request, record: RequestRecord, body: EmbeddingBody) -> Response:
    refuse_extras(body, {})
    inputs = prompts_of(body.input, "input", MAX_INPUTS, "inputs")
    refuse_inputs([len(each) for each in inputs], "input")
    if len({type(each) for each in inputs}) > 1:
        raise invalid("input", "texts and token ids are mixed: send one kind in a request")
    context = context_of(request, body)
    record.asks_for(body.model or "")
    caller = generation.caller(record, context)
    vectors, usage = await embed(
        generation,
        record,
        caller,
        inputs,
        model=body.model or "",
        options=EmbeddingOptions(
            pooling=Pooling(body.pooling) if body.pooling is not None else None,
            normalize=body.normalize is not False,
            dimensions=body.dimensions,
        ),
        truncate=bool(body.truncate),
    )
    model = body.model or generation.backends.default_model
    content = await _written(vectors, usage, model, in_base64=body.encoding_format == "base64")
    return Response(content, media_type="application/json")


async def _written(vectors: Sequence[Vector], usage: Usage, model: str, *, in_base64: bool) -> bytes:
    """The body, written by hand: what a JSON library does per value is most of such an answer's cost."""
    pieces = [b'{"object":"list","data":[']
    for index, vector in enumerate(vectors):
        if index:
            pieces.append(b",")
            if not index % VECTORS_PER_TURN:
                await asyncio.sleep(0)
        values = base64_of(vector) if in_base64 else floats_of(vector)
        pieces.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, values))
    name, counts = json.dumps(model).encode(), json.dumps(embedding_usage_object(usage)).encode()
    pieces.append(b'],"model":%b,"usage":%b}' % (name, counts))
    return b"".join(pieces)


def floats_of(vector: Vector) -> bytes:
    """A JSON list; nine digits tell every float32 apart."""
    return ("[" + ",".join([f"{value:.9g}" for value in memoryview(vector).cast("f")]) + "]").encode()


def base64_of(vector: Vector) -> bytes:
    """A JSON string of the values' bytes, little-endian."""
    if sys.byteorder == "big":
        values = array("f", vector)
        values.byteswap()
        vector = values.tobytes()
    return b'"' + base64.b64encode(vector) + b'"'
