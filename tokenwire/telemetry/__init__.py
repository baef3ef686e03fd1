"""Metrics: one registry per process, one naming scheme, one endpoint.

Every metric is `tokenwire_<tier>_<what>_<unit>`, in base units, with labels from a bounded set. Metrics are made here
so that the scheme holds; tiers say what they measure. Requires the `server` extra.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from tokenwire.errors import FailedPrecondition
from tokenwire.telemetry.metrics_server import MetricsServer
from tokenwire.tls import ServerTls

disable_created_metrics()  # type: ignore[no-untyped-call]
"""When each series began is one more of each, which nobody asks for."""

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Buckets of every latency histogram."""

UNITS = (
    "total", "seconds", "bytes", "tokens", "requests", "blocks", "replicas", "ratio", "info", "streams", "sequences",
    "sessions", "adapters", "watts", "hertz", "celsius", "state",
)  # fmt: skip
"""`state`: 1 while it is so, else 0."""
NAME = re.compile(rf"[a-z][a-z0-9_]*_({'|'.join(UNITS)})")


Combine = Literal["livesum", "livemax"]


@dataclass(frozen=True, slots=True)
class Described:
    """One metric, as documents list it."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    help: str
    labels: tuple[str, ...]


class TierMetrics:
    """Makes the metrics of one tier. A name out of the scheme or made twice is a ValueError."""

    def __init__(self, tier: str, registry: CollectorRegistry = REGISTRY) -> None:
        self.tier = tier
        self.registry = registry
        self.described: list[Described] = []
        """What was made, in that order."""

    def counter(self, what: str, help: str, labels: Sequence[str] = (), *, known: Iterable[str] = ()) -> Counter:
        """Something that only grows; `what` ends in `_total`.

        `known`: values of its one label that are counted from 0: of a series that begins at 1 Prometheus sees no rise.
        """
        counter = Counter(self.describe("counter", what, help, labels), help, labels, registry=self.registry)
        for value in known:
            counter.labels(value)
        return counter

    def gauge(self, what: str, help: str, labels: Sequence[str] = (), *, of_workers: Combine = "livesum") -> Gauge:
        """Something that goes up and down. `of_workers`: what it is with several, over those that live."""
        name = self.describe("gauge", what, help, labels)
        return Gauge(name, help, labels, registry=self.registry, multiprocess_mode=of_workers)

    def histogram(
        self, what: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        """A distribution."""
        name = self.describe("histogram", what, help, labels)
        return Histogram(name, help, labels, buckets=buckets, registry=self.registry)

    def traces(self) -> Counter:
        """What `tracing.open_tracer` counts in."""
        help = "Traced requests by what became of their spans: sent, failed (the collector), dropped (too many waited)"
        return self.counter("traces_total", help, ["outcome"])

    def describe(self, kind: str, what: str, help: str, labels: Sequence[str] = ()) -> str:
        """Note a metric, also one that is made elsewhere; returns its name."""
        if not NAME.fullmatch(what):
            raise ValueError(f"metric {what!r} must end in its unit: {NAME.pattern}")
        name = f"tokenwire_{self.tier}_{what}"
        self.described.append(Described(name, kind, help, tuple(labels)))
        return name


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
    try:
        MetricsServer(host, port, registry, tls).start()
    except OSError as error:
        message = f"metrics port {port} on {host} cannot be used ({error.strerror}): give another with --metrics-port"
        raise FailedPrecondition(message, reason="PORT_IN_USE") from error
