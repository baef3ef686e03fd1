"""A collector of traces on the wire: OpenTelemetry's TraceService, as its own stubs have it."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from tokenwire.telemetry import TierMetrics


@dataclass(frozen=True)
class Received:
    """One span, and the service it is of."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begin_ns: int
    end_ns: int
    kind: int
    error: str
    attributes: Mapping[str, Any]

    @property
    def took_ns(self) -> int:
        return self.end_ns - self.begin_ns


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.resources: list[dict[str, Any]] = []
        self.endpoint = ""
        self._changed = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._changed:
            for of_resource in request.resource_spans:
                resource = values(of_resource.resource.attributes)
                self.resources.append(resource)
                for of_scope in of_resource.scope_spans:
                    assert of_scope.scope.name == "tokenwire"
                    self.spans += [received(resource["service.name"], span) for span in of_scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, num_spans: int, timeout_s: float = 20) -> list[Received]:
        """Wait until so many have come."""
        limit_s = time.monotonic() + timeout_s
        with self._changed:
            while len(self.spans) < num_spans and time.monotonic() < limit_s:
                self._changed.wait(limit_s - time.monotonic())
            assert len(self.spans) >= num_spans, [span.name for span in self.spans]
            return list(self.spans)


def received(service: str, span: Any) -> Received:
    assert (span.status.code == 2) == bool(span.status.message), "an error has a message"
    return Received(
        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano, span.end_time_unix_nano, span.kind, span.status.message, values(span.attributes),
    )  # fmt: skip


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def running_collector() -> Iterator[Collector]:
    """On a free port of the loopback."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def traces_counter() -> Counter:
    """What a sink counts in."""
    return TierMetrics("gateway", CollectorRegistry()).traces()
