"""GET /healthz, /readyz and /metrics."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from gateway.generation import Generation
from tokenwire.telemetry import CONTENT_TYPE, exposition


def health_routes(generation: Generation, registry: CollectorRegistry) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        """The process is alive, whatever the tiers below do."""
        return JSONResponse({"status": "ok"})

    @router.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        """Requests would be answered; 503 and what is missing otherwise."""
        missing = "the gateway is shutting down" if generation.draining else generation.backends.missing()
        if missing:
            return JSONResponse({"status": "not ready", "missing": missing}, status_code=503)
        models = [card.name for card in generation.backends.models()]
        return JSONResponse({"status": "ready", "models": models})

    @router.get("/metrics")
    async def metrics() -> Response:
        """All metrics in Prometheus' text format."""
        return Response(exposition(registry), media_type=CONTENT_TYPE)

    return router
