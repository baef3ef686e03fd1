"""The HTTP application: every path, one shape of errors, a request id on everything."""

import time

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from gateway.generation import Generation
from gateway.http.errors import install_error_handlers
from gateway.http.front import Front
from gateway.http.generate import generate_handler
from gateway.http.health import HEALTH_PATHS, METRICS_PATH, health_routes
from gateway.http.identity_gate import IdentityGate
from gateway.http.limit_headers import LimitHeaders
from gateway.http.openai_chat import chat_handler
from gateway.http.openai_completions import completion_handler
from gateway.http.openai_embeddings import embedding_handler
from gateway.http.openai_models import model_routes
from gateway.http.openapi import description_routes
from gateway.http.request_ids import RequestIds
from gateway.identity.identifier import Identifier
from gateway.page.feed import LiveFeed
from gateway.page.files import page_files
from gateway.page.routes import LIVE_PATH, page_routes


def make_app(
    generation: Generation,
    registry: CollectorRegistry,
    identifier: Identifier | None = None,
    *,
    has_limits: bool = False,
    feed: LiveFeed | None = None,
) -> ASGIApp:
    """The application over this generation. Bodies are checked by hand, and described by `gateway.http.openapi`.

    `identifier`: asks callers who they are; None: nobody is asked. `has_limits`: answers say how tenants stand.
    `feed`: what the page's live view shows; None: there is no page.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(model_routes(generation, int(time.time())))
    app.include_router(health_routes(generation, registry))
    app.include_router(description_routes())
    files = page_files() if feed is not None else {}
    if feed is not None:
        app.include_router(page_routes(generation, feed, files))
    install_error_handlers(app)
    handlers = {
        "/v1/chat/completions": chat_handler(generation),
        "/v1/completions": completion_handler(generation),
        "/v1/embeddings": embedding_handler(generation),
        "/generate": generate_handler(generation),
    }
    front: ASGIApp = Front(app, handlers)
    if identifier is not None:
        settings = generation.settings
        open_paths = [*files]
        if settings.open_health:
            open_paths += HEALTH_PATHS
        if settings.open_metrics:
            open_paths += METRICS_PATH, LIVE_PATH
        front = IdentityGate(front, identifier, open_paths)
    if has_limits:
        front = LimitHeaders(front)
    return RequestIds(front)
