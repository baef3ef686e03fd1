"""The gateway's part of a trace: the request as a whole, being let in, being answered below, and being sent.

What is below is one span, however many prompts a request has; the tokenizer tier's spans are within it.
"""

import time

from tokenwire.telemetry.tracing import Attributes, Span, TraceContext, Tracer, phases


class RequestTrace:
    """One request's, from when it is understood to its end."""

    def __init__(self, tracer: Tracer, context: TraceContext, arrival_s: float) -> None:
        self._tracer = tracer
        self._context = context
        self._below = context.child()
        self._arrival_s = arrival_s
        self._goes_down_s = time.monotonic()

    @property
    def traceparent(self) -> str:
        """For the tiers below."""
        return self._below.traceparent

    def end(self, api: str, ended_s: float | None, attributes: Attributes, error: str) -> None:
        """Hand it over. `ended_s`: when the last output had ended, on the monotonic clock; None: never."""
        now_s = time.monotonic()
        answered_s = ended_s or now_s
        self._tracer.end(
            lambda: [
                Span(f"gateway {api}", self._context, self._arrival_s, now_s, "server", attributes, error),
                *phases(self._context, self._arrival_s, ("admit", self._goes_down_s)),
                Span("generate", self._below, self._goes_down_s, answered_s, "client", error=error),
                *phases(self._context, answered_s, ("send", now_s)),
            ]
        )
