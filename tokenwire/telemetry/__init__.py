"""Metrics: one registry per process, one naming scheme, one endpoint.

Every metric is `tokenwire_<tier>_<what>_<unit>`, in base units, with labels from a bounded set. Metrics are made here
so that the scheme holds; tiers say what they measure. Requires the `server` extra.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from ssl import SSLSocket

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from tokenwire.errors import FailedPrecondition
from tokenwire.tls import ServerFiles, ServerTls, keep_fresh, resume_nothing

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Buckets of every latency histogram."""

UNITS = (
    "total", "seconds", "bytes", "tokens", "requests", "blocks", "replicas", "ratio", "info", "streams", "sequences",
    "adapters",
)  # fmt: skip
NAME = re.compile(rf"[a-z][a-z0-9_]*_({'|'.join(UNITS)})")


class TierMetrics:
    """Makes the metrics of one tier. A name out of the scheme or made twice is a ValueError."""

    def __init__(self, tier: str, registry: CollectorRegistry = REGISTRY) -> None:
        self.tier = tier
        self.registry = registry

    def counter(self, what: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """Something that only grows; `what` ends in `_total`."""
        return Counter(self._name(what), help, labels, registry=self.registry)

    def gauge(self, what: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        """Something that goes up and down; with several workers the sum over those that live."""
        return Gauge(self._name(what), help, labels, registry=self.registry, multiprocess_mode="livesum")

    def histogram(
        self, what: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        """A distribution."""
        return Histogram(self._name(what), help, labels, buckets=buckets, registry=self.registry)

    def _name(self, what: str) -> str:
        if not NAME.fullmatch(what):
            raise ValueError(f"metric {what!r} must end in its unit: {NAME.pattern}")
        return f"tokenwire_{self.tier}_{what}"


def exposition(registry: CollectorRegistry = REGISTRY) -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(registry)


def merged_registry(folder: Path) -> CollectorRegistry:
    """What all processes that keep their numbers in this folder have counted, in one."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return registry


def serve_metrics(host: str, port: int, registry: CollectorRegistry = REGISTRY, tls: ServerTls | None = None) -> None:
    """Answer `GET /metrics` on this port from a thread of its own; port 0 serves none. Raises FailedPrecondition."""
    if port == 0:
        return
    files = ServerFiles(tls) if tls is not None else None
    try:
        if tls is None or files is None:
            start_http_server(port, addr=host, registry=registry)
            return
        server, _ = start_http_server(
            port,
            addr=host,
            registry=registry,
            certfile=tls.certificate,
            keyfile=tls.key,
            client_cafile=tls.client_ca or None,
            client_auth_required=bool(tls.client_ca),
        )
        assert isinstance(server.socket, SSLSocket)
        resume_nothing(server.socket.context, asks=bool(tls.client_ca))
        keep_fresh(server.socket.context, files)
    except OSError as error:
        message = f"metrics port {port} on {host} cannot be used ({error.strerror}): give another with --metrics-port"
        raise FailedPrecondition(message, reason="PORT_IN_USE") from error
