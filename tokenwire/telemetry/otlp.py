"""Sends ended spans to a collector by OTLP over gRPC, in batches and from a thread of its own.

Needs the `tracing` extra; `tracing.open_tracer` loads this module when tracing is on. What the collector does not take
in time is dropped, and logged by OpenTelemetry. Its own environment variables say the rest: headers and certificates
(`OTEL_EXPORTER_OTLP_*`), attributes of the process (`OTEL_RESOURCE_ATTRIBUTES`), size of batches (`OTEL_BSP_*`).
"""

import socket
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tokenwire.requests import new_id
from tokenwire.telemetry.tracing import Span
from tokenwire.version import __version__

KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
SCOPE = InstrumentationScope("tokenwire", __version__)
LAST_SPANS_S = 3.0
"""How long a tier that stops waits for the collector."""
KEPT = TraceFlags(TraceFlags.SAMPLED)


class OtlpSink:
    """A `SpanSink`."""

    def __init__(self, endpoint: str, tier: str) -> None:
        """`endpoint`: `http://host:port`, or `https://` for TLS with the system's CAs."""
        self._resource = Resource.create(
            {
                "service.namespace": "tokenwire",
                "service.name": f"tokenwire-{tier}",
                "service.version": __version__,
                "service.instance.id": new_id(f"{socket.gethostname()}-", 8),
            }
        )
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))

    def take(self, spans: Sequence[Span], clock_offset_ns: int) -> None:
        """See `SpanSink.take`."""
        for span in spans:
            context = span.context
            own = SpanContext(context.trace_id, context.span_id, is_remote=False, trace_flags=KEPT)
            parent = None
            if context.parent_id:
                parent = SpanContext(
                    context.trace_id, context.parent_id, is_remote=span.kind == "server", trace_flags=KEPT
                )
            self._processor.on_end(
                ReadableSpan(
                    span.name,
                    context=own,
                    parent=parent,
                    resource=self._resource,
                    attributes=span.attributes,
                    kind=KINDS[span.kind],
                    status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                    start_time=round(span.begin_s * 1e9) + clock_offset_ns,
                    end_time=round(span.end_s * 1e9) + clock_offset_ns,
                    instrumentation_scope=SCOPE,
                )
            )

    def close(self) -> None:
        """See `SpanSink.close`."""
        closing = threading.Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        closing.start()
        closing.join(LAST_SPANS_S)
