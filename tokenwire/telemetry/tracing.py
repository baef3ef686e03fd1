"""Traces: where a request belongs (W3C trace context), and spans made at its end from times that are kept anyway.

Nothing happens per token. Off, a tier has no tracer and does nothing; this
module knows no exporter and needs no package (see `otlp`, which is loaded when tracing is on).
"""

import importlib
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from prometheus_client import Counter

from tokenwire.cutting import cut
from tokenwire.errors import FailedPrecondition
from tokenwire.settings import ServerSettings

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""https://www.w3.org/TR/trace-context/: version, trace, parent, flags; later versions may have more behind."""
SAMPLED = 1
_IDS = random.Random()
"""Seeded by the kernel, once per process."""

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span that has begun: its trace, itself, and what it is part of."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """64 bits, not 0."""
    parent_id: int = 0
    """0: it is the trace's first."""
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """For whoever is called from within the span."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{SAMPLED if self.sampled else 0:02x}"

    def child(self) -> "TraceContext":
        """A span within this one."""
        return TraceContext(self.trace_id, _new_id(64), self.span_id, self.sampled)


@dataclass(slots=True)
class Span:
    """A span that has ended. Times are of the monotonic clock, in seconds."""

    name: str
    context: TraceContext
    begin_s: float
    end_s: float
    kind: Literal["server", "client", "internal"] = "internal"
    attributes: Attributes = field(default_factory=dict)
    error: str = ""
    """What went wrong; empty: nothing."""

    def __post_init__(self) -> None:
        """What others chose is not sent on at any length."""
        self.error = cut(self.error)
        if any(isinstance(value, str) and value is not cut(value) for value in self.attributes.values()):
            self.attributes = {k: cut(v) if isinstance(v, str) else v for k, v in self.attributes.items()}


class SpanSink(Protocol):
    """Where ended spans go. Must not block; may drop what is too much."""

    def take(self, make: Callable[[], Sequence[Span]], clock_offset_ns: int) -> None:
        """What makes the spans of one request, once, on any thread.

        `clock_offset_ns` on top of the monotonic clock gives the time of day.
        """

    def close(self) -> None:
        """Send what waits, within a few seconds. Blocks."""


class Tracer:
    """Begins traces and hands over what has ended. One per process; lives on the event loop."""

    def __init__(self, sink: SpanSink, ratio: float = 1.0) -> None:
        """`ratio`: the part of the traces decided here that are kept. A trusted caller's own decision is followed."""
        self._sink = sink
        self._below = round(ratio * 2**64)

    def begin(self, traceparent: str, *, trusted: bool = True) -> TraceContext:
        """A request's span in this tier. A `traceparent` that is empty or malformed begins a trace.

        Where the caller is not trusted, its trace goes on and whether it is kept is decided here.
        """
        found = TRACEPARENT.fullmatch(traceparent)
        if found is None or (traceparent.startswith("00") and found[4]):
            trace_id = _new_id(128)
            return TraceContext(trace_id, _new_id(64), 0, trace_id % 2**64 < self._below)
        # Of a caller's id nothing may follow: whoever chose it could have chosen one that is kept.
        sampled = bool(int(found[3], 16) & SAMPLED) if trusted else _new_id(64) < self._below
        return TraceContext(int(found[1], 16), _new_id(64), int(found[2], 16), sampled)

    def end(self, make: Callable[[], Sequence[Span]]) -> None:
        """What makes the spans of one request, all of one trace that is sampled.

        It is called later, many in a row and on another thread: it must hold nothing large and change nothing.
        """
        self._sink.take(make, time.time_ns() - time.monotonic_ns())

    def close(self) -> None:
        """As `SpanSink.close`."""
        self._sink.close()


def phases(within: TraceContext, begin_s: float, *ends: tuple[str, float]) -> list[Span]:
    """Spans that follow each other without a gap, the first from `begin_s`; those that took no time are left out."""
    found: list[Span] = []
    for name, end_s in ends:
        if end_s > begin_s:
            found.append(Span(name, within.child(), begin_s, end_s))
            begin_s = end_s
    return found


def open_tracer(settings: ServerSettings, tier: str, traces: Counter) -> Tracer | None:
    """What a tier traces with; None where tracing is off. Loads OpenTelemetry where it is on.

    `traces`: as `TierMetrics.traces` makes it; the spans of each request count there once, by what became of them.

    Raises FailedPrecondition where that is not installed, or cannot be loaded.
    """
    if not settings.trace_endpoint:
        return None
    try:
        otlp: Any = importlib.import_module("tokenwire.telemetry.otlp")
    except Exception as error:  # a package that does not fit another fails with whatever it likes
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "opentelemetry":
            message = f"--trace-endpoint: OpenTelemetry is not installed ({error}): pip install 'tokenwire[tracing]'"
            raise FailedPrecondition(message, reason="PACKAGE_MISSING") from error
        why = cut(f"{type(error).__name__}: {error}")
        message = (
            f"--trace-endpoint: OpenTelemetry was found and fails to load, {why}; `pip check` names packages that do "
            "not fit each other"
        )
        raise FailedPrecondition(message, reason="PACKAGE_BROKEN") from error
    return Tracer(otlp.OtlpSink(settings.trace_endpoint, tier, traces), settings.trace_ratio)


def _new_id(num_bits: int) -> int:
    return _IDS.getrandbits(num_bits) or 1
