"""GET /healthz, /readyz and /metrics."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from gateway.generation import Generation
from gateway.identity.identity import NOBODY, identity_of_call
from tokenwire.errors import PermissionDenied
from tokenwire.telemetry import CONTENT_TYPE, exposition

HEALTH_PATHS = ("/healthz", "/readyz")
METRICS_PATH = "/metrics"


def refuse_unless_metrics(generation: Generation) -> None:
    """Raise PermissionDenied for callers whom metrics, and what shows as much, are not for."""
    if not (generation.settings.open_metrics or identity_of_call().admin):
        raise PermissionDenied("metrics and the live view are for callers with admin rights", reason="ADMIN_ONLY")


def health_routes(generation: Generation, registry: CollectorRegistry) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        """The process is alive, whatever the tiers below do."""
        return JSONResponse({"status": "ok"})

    @router.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        """Requests would be answered; 503 otherwise. What is served or missing is told to callers that are known."""
        missing = "the gateway is shutting down" if generation.draining else generation.backends.missing()
        status, code = ("not ready", 503) if missing else ("ready", 200)
        if identity_of_call() is NOBODY.who:
            return JSONResponse({"status": status}, status_code=code)
        if missing:
            return JSONResponse({"status": status, "missing": missing}, status_code=code)
        return JSONResponse({"status": status, "models": [card.name for card in generation.backends.models()]})

    @router.get("/metrics")
    async def metrics() -> Response:
        """All metrics in Prometheus' text format."""
        refuse_unless_metrics(generation)
        return Response(exposition(registry), media_type=CONTENT_TYPE)

    return router
