"""Sends ended spans to a collector by OTLP over gRPC, in batches and from a thread of its own.

Needs the `tracing` extra; `tracing.open_tracer` loads this module when tracing is on. Batches, tries again and connects
as OpenTelemetry's SDK and exporter do; the messages are written here, straight from our spans, because the SDK's way
from its spans to messages takes three times as long (decision 31). What the collector does not take in time is dropped,
logged by OpenTelemetry and counted here. Its own environment variables say the rest: headers and certificates
(`OTEL_EXPORTER_OTLP_*`), attributes of the process (`OTEL_RESOURCE_ATTRIBUTES`), size of batches (`OTEL_BSP_*`).
"""

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags
from prometheus_client import Counter

from tokenwire.requests import new_id
from tokenwire.telemetry.tracing import Span
from tokenwire.version import __version__

KINDS = {
    "server": SpanMessage.SPAN_KIND_SERVER,
    "client": SpanMessage.SPAN_KIND_CLIENT,
    "internal": SpanMessage.SPAN_KIND_INTERNAL,
}
VALUES = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
"""Field of `AnyValue` by type."""
SCOPE = InstrumentationScope(name="tokenwire", version=__version__)
KEPT = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
FLAGS, REMOTE = 0x01 | 0x100, 0x200
"""Of a span: sampled, and known whether its parent is another process's; that it is."""
MAX_EXPORT_BYTES = 2 * 2**20
"""Of a message to the collector, which takes 4 MiB unless it says otherwise; the last span may go over it."""
SPAN_HEAD_BYTES = 5
LAST_SPANS_S = 3.0
"""How long a tier that stops waits for the collector."""


class Ended(NamedTuple):
    """What makes the spans of one request: to OpenTelemetry's batches one thing that is sampled."""

    make: Callable[[], Sequence[Span]]
    clock_offset_ns: int
    context: SpanContext = KEPT


class OtlpSink:
    """A `SpanSink`."""

    def __init__(self, endpoint: str, tier: str, traces: Counter) -> None:
        """`endpoint`: `http://host:port`, or `https://` for TLS with the system's CAs. `traces`: see `open_tracer`."""
        resource = Resource.create(
            {
                "service.namespace": "tokenwire",
                "service.name": f"tokenwire-{tier}",
                "service.version": __version__,
                "service.instance.id": new_id(f"{socket.gethostname()}-", 8),
            }
        )
        self._processor = BatchSpanProcessor(_Exporter(endpoint, resource.attributes, traces))
        self._waiting: deque[Ended] = self._processor._batch_processor._queue
        self._dropped = traces.labels("dropped")

    def take(self, make: Callable[[], Sequence[Span]], clock_offset_ns: int) -> None:
        """See `SpanSink.take`."""
        if len(self._waiting) == self._waiting.maxlen:
            self._dropped.inc()  # the oldest, which makes way
        self._processor.on_end(Ended(make, clock_offset_ns))  # type: ignore[arg-type]

    def close(self) -> None:
        """See `SpanSink.close`."""
        closing = threading.Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        closing.start()
        closing.join(LAST_SPANS_S)


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's, which is given our spans."""

    def __init__(self, endpoint: str, attributes: Mapping[str, Any], traces: Counter) -> None:
        super().__init__(endpoint=endpoint)
        self._sent, self._failed = traces.labels("sent"), traces.labels("failed")
        self._of_process = resource_pb2.Resource()
        for key, value in attributes.items():
            self._of_process.attributes.add(key=key, value=any_value(value))

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Send a batch of `Ended`, in as many messages as a collector takes: one that fails does not hold the rest."""
        result = SpanExportResult.SUCCESS
        for request, num_traces in self.requests_of(spans):
            if self._export(request) is SpanExportResult.SUCCESS:  # type: ignore[arg-type]
                self._sent.inc(num_traces)
            else:
                self._failed.inc(num_traces)
                result = SpanExportResult.FAILURE
        return result

    def requests_of(self, batch: Sequence[Ended]) -> Iterator[tuple[ExportTraceServiceRequest, int]]:
        """The messages for a batch, each of at most about MAX_EXPORT_BYTES, and how many `Ended` begin in it."""
        request, messages, num_bytes = self._empty_request()
        num_traces = 0
        for ended in batch:
            num_traces += 1
            for span in ended.make():
                add_message(messages, span, ended.clock_offset_ns)
                num_bytes += messages[-1].ByteSize() + SPAN_HEAD_BYTES
                if num_bytes >= MAX_EXPORT_BYTES:
                    yield request, num_traces
                    request, messages, num_bytes = self._empty_request()
                    num_traces = 0
        if messages:
            yield request, num_traces

    def _empty_request(self) -> tuple[ExportTraceServiceRequest, Any, int]:
        request = ExportTraceServiceRequest()
        of_process = request.resource_spans.add(resource=self._of_process)
        return request, of_process.scope_spans.add(scope=SCOPE).spans, request.ByteSize()

    def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
        """What it sends: what it was given."""
        assert isinstance(data, ExportTraceServiceRequest)
        return data

    def _count_data(self, data: Any) -> int:
        """Spans of a message."""
        return len(data.resource_spans[0].scope_spans[0].spans)


def add_message(messages: Any, span: Span, clock_offset_ns: int) -> None:
    """Add a span to repeated span messages; in place, because messages that are handed over are copied."""
    context = span.context
    message = messages.add(
        name=span.name,
        trace_id=context.trace_id.to_bytes(16),
        span_id=context.span_id.to_bytes(8),
        parent_span_id=context.parent_id.to_bytes(8) if context.parent_id else b"",
        kind=KINDS[span.kind],
        start_time_unix_nano=round(span.begin_s * 1e9) + clock_offset_ns,
        end_time_unix_nano=round(span.end_s * 1e9) + clock_offset_ns,
        flags=FLAGS | (REMOTE if span.kind == "server" else 0),
    )
    for key, value in span.attributes.items():
        message.attributes.add(key=key, value=any_value(value))
    if span.error:
        message.status.code, message.status.message = Status.STATUS_CODE_ERROR, span.error


def any_value(value: Any) -> dict[str, Any]:
    """An attribute's value, as protobuf takes it for a message; what is none of the four kinds is told as text."""
    field = VALUES.get(type(value))
    return {field: value} if field is not None else {"string_value": str(value)}
