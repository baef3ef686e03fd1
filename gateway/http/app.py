"""The HTTP application: every route, one shape of errors, a request id on everything."""

import time

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from gateway.generation import Generation
from gateway.http.errors import install_error_handlers
from gateway.http.generate import generate_routes
from gateway.http.health import health_routes
from gateway.http.openai_chat import chat_routes
from gateway.http.openai_completions import completion_routes
from gateway.http.openai_models import model_routes
from gateway.http.request_ids import RequestIds


def make_app(generation: Generation, registry: CollectorRegistry) -> FastAPI:
    """The application over this generation. Bodies are checked by hand, so it publishes no schema of its own."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(chat_routes(generation))
    app.include_router(completion_routes(generation))
    app.include_router(model_routes(generation, int(time.time())))
    app.include_router(generate_routes(generation))
    app.include_router(health_routes(generation, registry))
    install_error_handlers(app)
    app.add_middleware(RequestIds)
    return app
