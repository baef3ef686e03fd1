import asyncio
import json
from typing import Any

import jsonschema
import pytest
from google.protobuf import json_format

from gateway.http.app import make_app
from gateway.http.health import health_routes
from gateway.http.openai_models import model_routes
from gateway.http.openapi import description, description_routes
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tokenwire.v1 import common_pb2, tokenizer_pb2

DOCUMENT = description()
CHAT = {"messages": [{"role": "user", "content": "a b"}]}


def check(path: str, method: str, status: int, body: Any) -> None:
    """An answer is what the description says."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    found = responses.get(str(status)) or responses[f"{status // 100}XX"]
    schema = {**found["content"]["application/json"]["schema"], "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(body)


def takes(name: str, value: Any) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_what_is_described_is_what_there_is() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            front = make_app(live.server.generation, live.registry)._app  # type: ignore[attr-defined]
            served = {(path, "post") for path in front._handlers}
            methods = live.server._web._methods._methods.values()
            served |= {(each.path, "post") for each in methods if not (each.streams_requests or each.streams_responses)}
            routers = (model_routes(front, 0), health_routes(front, live.registry), description_routes())
            for route in [route for router in routers for route in router.routes]:
                served |= {(route.path.replace(":path}", "}"), method.lower()) for method in route.methods}
            described = {
                (path, method)
                for path, operations in DOCUMENT["paths"].items()
                for method in operations
                if method != "parameters"
            }
            assert described == served
            assert (await live.http.get("/openapi.json")).json() == json.loads(json.dumps(DOCUMENT))

    asyncio.run(main())


@pytest.mark.parametrize("name", ["ChatBody", "CompletionBody", "EmbeddingBody", "GenerateBody"])
def test_schemas_are_schemas_and_closed(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2, "service_tier": "auto"}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {**CHAT, "model": "nobody"}),
        ("/v1/completions", {"prompt": ["a b", "c"], "logprobs": 1, "echo": True}),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/generate", {"inputs": ["a", "!break b"], "logprobs": 1, "prompt_logprobs": 1}),
        ("/generate", {"inputs": "!down"}),
    ],
)
def test_answers_are_as_described(path: str, body: dict[str, Any]) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post(path, json=body)
            check(path, "post", response.status_code, response.json())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("ListModels", {}), ("ListModels", []), ("ListModels", {"x": 1}), ("Embed", {"texts": ["a b"]}), ("Embed", {}),
        ("Tokenize", {"texts": 5}), ("Tokenize", {"texts": ["a"]}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_unary_calls_of_grpc_are_answered_as_described(method: str, body: Any, content_type: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            path = f"/tokenwire.v1.GenerationService/{method}"
            content, headers = json.dumps(body).encode(), {"content-type": content_type}
            response = await live.http.post(path, content=content, headers=headers)
            check(path, "post", response.status_code, response.json())

    asyncio.run(main())


def test_messages_are_schemas_that_take_what_protobuf_writes() -> None:
    names = [name for name in DOCUMENT["components"]["schemas"] if name.startswith("pb.")]
    assert len(names) > 20
    for name in names:
        jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])
    card = common_pb2.ModelCard(name="a", capabilities=[common_pb2.CAPABILITY_EMBED], max_context_tokens=5)
    assert takes("pb.ListModelsResponse", {"models": [json_format.MessageToDict(card)]})
    request = tokenizer_pb2.EmbedRequest(texts=["a"], token_ids=[common_pb2.TokenIds(ids=[1])])
    request.context.priority, request.context.tenant = -5, "t"
    assert takes("pb.EmbedRequest", json_format.MessageToDict(request))
    assert not takes("pb.EmbedRequest", {"texts": "a"}) and not takes("pb.EmbedRequest", {"nothing": 1})
    assert not takes("pb.EmbedRequest", {"tokenIds": [{"ids": [2**32]}]})


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/v1/models/nobody", "/healthz", "/readyz"])
def test_what_is_looked_at_is_as_described(path: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.get(path)
            described = "/v1/models/{name}" if path.startswith("/v1/models/") else path
            check(described, "get", response.status_code, response.json())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, True),
        ({"temperature": -0.1}, False),
        ({"top_p": 0}, False),
        ({"seed": -(2**63)}, True),
        ({"seed": 2**64}, False),
        ({"n": 0}, False),
        ({"stop": ["a"] * 17}, False),
        ({"verbosity": "medium"}, True),
        ({"verbosity": "low"}, False),
        ({"audio": None}, True),
        ({"audio": {}}, False),
        ({"nonsense": 1}, False),
        ({"user": 5}, False),
        ({"stream_options": {"include_usage": True, "include_obfuscation": True}}, False),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, True),
        ({"messages": [{"role": "user", "content": "a", "refusal": "b"}]}, False),
    ],
)
def test_what_the_description_allows_is_what_is_accepted(fields: dict[str, Any], allowed: bool) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            body = {**CHAT, **fields}
            if "stream_options" in fields:
                body["stream"] = True
            response = await live.http.post("/v1/chat/completions", json=body)
            assert (response.status_code == 200) is allowed, response.text
            assert takes("ChatBody", body) is allowed

    asyncio.run(main())
