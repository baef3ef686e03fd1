"""GET /v1/models and /v1/models/{id}, as OpenAI's API reference has them, with what each model does besides.

Adapters are listed too; their `parent` is the model.
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.generation import Generation, arriving
from tokenwire.embedding_wire import capability_names
from tokenwire.errors import NotFound

TIMEOUT_S = 10.0


def model_routes(generation: Generation, started: int) -> APIRouter:
    """The routes. `started`: Unix time that stands as each model's `created`."""
    router = APIRouter()

    async def cards(request: Request, name: str = "") -> list[dict[str, Any]]:
        request_id: str = request.state.request_id
        with generation.record("http.models") as record:
            record.request_id = request_id
            record.asks_for(name)
            with generation.charged_call(arriving(request_id, priority=None, tenant=None, timeout_s=None)):
                models = await generation.backends.list_models(timeout_s=TIMEOUT_S, request_id=request_id)
        found: list[dict[str, Any]] = []
        for card in models:
            about = {
                "object": "model",
                "created": started,
                "owned_by": "tokenwire",
                "max_context_tokens": card.max_context_tokens,
                "capabilities": capability_names(card),
                "embedding_size": card.embedding_size,
            }
            found.append({"id": card.name, **about})
            found += [adapter_object(name, card.name, about) for name in card.adapters]
        return found

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        """What can be asked for."""
        return JSONResponse({"object": "list", "data": await cards(request)})

    @router.get("/v1/models/{name:path}")
    async def one_model(request: Request, name: str) -> Response:
        """One model."""
        found = await cards(request, name)
        for card in found:
            if card["id"] == name:
                return JSONResponse(card)
        known = ", ".join(card["id"] for card in found) or "none"
        raise NotFound(f"model {name!r:.80} is not served here; served: {known}", reason="MODEL_NOT_FOUND")

    return router


def adapter_object(name: str, parent: str, about: dict[str, Any]) -> dict[str, Any]:
    """An adapter of a model, which does what the model does but embed."""
    return {"id": name, **about, "capabilities": ["generate"], "embedding_size": 0, "root": parent, "parent": parent}
