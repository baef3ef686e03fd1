"""GET /openapi.json: the HTTP API described in OpenAPI 3.1.

Requests are described by the very models and tables that check them, answers by `answer_schemas`, gRPC's unary calls by
their descriptors. Knows what each path is for; does not serve any but its own.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.http.answer_schemas import ANSWERS, Schema, ref
from gateway.http.chat_messages import IGNORED_IN_CALLS, UNBUILT_MESSAGE, ChatMessageFields, ToolCallFields
from gateway.http.fields import UNBUILT_STREAM_OPTIONS, StreamOptions
from gateway.http.generate import GenerateBody
from gateway.http.openai_chat import UNBUILT_CHAT, ChatBody
from gateway.http.openai_completions import UNBUILT_COMPLETION, CompletionBody
from gateway.http.openai_embeddings import EmbeddingBody
from gateway.web.descriptions import CONNECT_ERROR, message_schemas, name_of, unary_methods
from tokenwire.requests import MAX_REQUEST_ID_CHARS
from tokenwire.version import __version__

BODIES: tuple[type[BaseModel], ...] = (ChatBody, CompletionBody, EmbeddingBody, GenerateBody)
UNBUILT: Mapping[type[BaseModel], Mapping[str, tuple[Any, ...]]] = {
    ChatBody: UNBUILT_CHAT,
    CompletionBody: UNBUILT_COMPLETION,
    ChatMessageFields: UNBUILT_MESSAGE,
    StreamOptions: UNBUILT_STREAM_OPTIONS,
}
"""Fields that are known and not built, with the values that change nothing."""
IGNORED: Mapping[type[BaseModel], frozenset[str]] = {ToolCallFields: IGNORED_IN_CALLS}

ERROR_RESPONSES = {"4XX": "bad input, or too much of it", "5XX": "not built, not there now, or ours"}
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key or a token, where the gateway asks who calls; it answers 401 then",
}
REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "description": "comes back with the answer, and stands in the logs of all tiers",
    "schema": {"type": "string", "maxLength": MAX_REQUEST_ID_CHARS, "pattern": "^[!-~]*$"},
}


def description_routes() -> APIRouter:
    """The route."""
    router = APIRouter()
    content = _content()

    @router.get("/openapi.json")
    async def openapi() -> Response:
        """What this port takes and answers."""
        return Response(content, media_type="application/json")

    return router


@cache
def _content() -> bytes:
    return json.dumps(description(), separators=(",", ":")).encode()


def description() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokenwire",
            "version": __version__,
            "description": "Text generation and embeddings over HTTP, in the form of OpenAI's API and a plain one.",
        },
        "paths": {
            "/v1/chat/completions": _generating("Answer a conversation", ChatBody, "ChatCompletion"),
            "/v1/completions": _generating("Continue one or many prompts", CompletionBody, "Completion"),
            "/generate": _generating("Continue one or many inputs", GenerateBody, "Generated"),
            "/v1/embeddings": _posting("Vectors of one or many inputs", EmbeddingBody, _json("Embeddings")),
            "/v1/models": {"get": _operation("What can be asked for", {"200": _json("Models")})},
            "/v1/models/{name}": {
                "get": _operation("One model", {"200": _json("Model")}),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            },
            "/healthz": _looking("The process is alive", {"200": _json("Alive")}),
            "/readyz": _looking("Requests would be answered", {"200": _json("Ready"), "503": _json("NotReady")}),
            **{
                path: _calling(f"{method.name}, as over gRPC", name_of(method.input_type), name_of(method.output_type))
                for path, method in unary_methods()
            },
            "/metrics": {"get": _operation("Metrics in Prometheus' text format", {"200": _text("text/plain")})},
            "/openapi.json": {
                "get": _operation(
                    "This document",
                    {"200": {"description": "it", "content": {"application/json": {"schema": {"type": "object"}}}}},
                )
            },
        },
        "components": {
            "schemas": {**_request_schemas(), **ANSWERS, "ConnectError": CONNECT_ERROR, **message_schemas()},
            "securitySchemes": {"bearer": BEARER},
        },
        "security": [{"bearer": []}, {}],
    }


def _operation(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    errors = {status: _json("Error", why) for status, why in ERROR_RESPONSES.items()}
    return {"summary": summary, "parameters": [REQUEST_ID], "responses": {**errors, **responses}}


def _looking(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    heads = {status: {"description": found["description"]} for status, found in responses.items()}
    head = {**_operation(summary, heads), "summary": f"{summary}; the status alone"}
    head["responses"] = {**{status: {"description": why} for status, why in ERROR_RESPONSES.items()}, **heads}
    return {"get": _operation(summary, responses), "head": head}


def _posting(summary: str, body: type[BaseModel], answer: dict[str, Any]) -> dict[str, Any]:
    request = {"required": True, "content": {"application/json": {"schema": ref(body.__name__)}}}
    return {"post": {**_operation(summary, {"200": answer}), "requestBody": request}}


def _calling(summary: str, request: str, answer: str) -> dict[str, Any]:
    """A unary call of the gRPC service, by the Connect protocol."""
    operation = _operation(summary, {"200": _json(answer)})
    either = {"anyOf": [ref("ConnectError"), ref("Error")]}
    for status in ERROR_RESPONSES:
        operation["responses"][status]["content"]["application/json"]["schema"] = either
    body = {"required": True, "content": {"application/json": {"schema": ref(request)}}}
    return {"post": {**operation, "requestBody": body}}


def _generating(summary: str, body: type[BaseModel], answer: str) -> dict[str, Any]:
    found = _json(answer)
    found["description"] += "; with stream true, server-sent events"
    found["content"]["text/event-stream"] = {}
    return _posting(summary, body, found)


def _json(name: str, description: str = "") -> dict[str, Any]:
    return {"description": description or name, "content": {"application/json": {"schema": ref(name)}}}


def _text(media_type: str) -> dict[str, Any]:
    return {"description": "text", "content": {media_type: {"schema": {"type": "string"}}}}


def _request_schemas() -> dict[str, Schema]:
    """Of the bodies and all that stands in them."""
    _, found = models_json_schema(
        [(body, "validation") for body in BODIES], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Schema] = found["$defs"]
    for kind in (*BODIES, *UNBUILT, *IGNORED):
        properties = schemas[kind.__name__]["properties"]
        for name, neutral in UNBUILT.get(kind, {}).items():
            properties[name] = {"description": "Not built: these values alone are accepted.", "enum": list(neutral)}
        for name in IGNORED.get(kind, ()):
            properties[name] = {"description": "Ignored."}
    return {name: _closed(schema) for name, schema in schemas.items()}


def _closed(schema: Any) -> Any:
    """The same without generated titles; an object of ours has no fields but those it names."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if isinstance(found.get("properties"), dict) and found.get("additionalProperties") is True:
        found["additionalProperties"] = False
    return found
