"""Keeps the spans that a tracer hands over."""

from collections.abc import Callable, Sequence

from tokenwire.telemetry.tracing import Span, Tracer


class KeptSpans:
    """A `SpanSink`."""

    def __init__(self) -> None:
        self.requests: list[list[Span]] = []
        self.closed = False

    def take(self, make: Callable[[], Sequence[Span]], clock_offset_ns: int) -> None:
        spans = make()
        assert spans and len({span.context.trace_id for span in spans}) == 1
        assert all(span.context.sampled and span.end_s >= span.begin_s for span in spans)
        self.requests.append(list(spans))

    def close(self) -> None:
        self.closed = True


def keeping_tracer(ratio: float = 1.0) -> tuple[Tracer, KeptSpans]:
    sink = KeptSpans()
    return Tracer(sink, ratio), sink
