"""The HTTP application: every path, one shape of errors, a request id on everything."""

import time

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from gateway.generation import Generation
from gateway.http.errors import install_error_handlers
from gateway.http.front import Front
from gateway.http.generate import generate_handler
from gateway.http.health import health_routes
from gateway.http.openai_chat import chat_handler
from gateway.http.openai_completions import completion_handler
from gateway.http.openai_embeddings import embedding_handler
from gateway.http.openai_models import model_routes
from gateway.http.openapi import description_routes
from gateway.http.request_ids import RequestIds


def make_app(generation: Generation, registry: CollectorRegistry) -> ASGIApp:
    """The application over this generation. Bodies are checked by hand, and described by `gateway.http.openapi`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(model_routes(generation, int(time.time())))
    app.include_router(health_routes(generation, registry))
    app.include_router(description_routes())
    install_error_handlers(app)
    handlers = {
        "/v1/chat/completions": chat_handler(generation),
        "/v1/completions": completion_handler(generation),
        "/v1/embeddings": embedding_handler(generation),
        "/generate": generate_handler(generation),
    }
    return RequestIds(Front(app, handlers))
