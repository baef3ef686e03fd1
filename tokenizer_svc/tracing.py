"""The tokenizer tier's part of a trace: waiting for the encoder, encoding, being held, and the calls to model tiers.

Built from the times of the terminal event when a request has ended. Does not know the wire.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tokenwire.errors import TokenwireError
from tokenwire.requests import RequestContext, TokenizerTimings
from tokenwire.telemetry.tracing import Attributes, Span, TraceContext, Tracer, phases


@dataclass(slots=True)
class _Call:
    """Choices that went to one model tier together."""

    context: TraceContext
    begin_s: float
    target: str
    choices: range
    end_s: float | None = None
    """When that model tier gave them up; None: it did not."""
    followed: bool = False
    """They went on elsewhere."""

    def has_any_of(self, choices: range) -> bool:
        """Whether they share a choice."""
        return self.choices.start < choices.stop and choices.start < self.choices.stop


class RequestTrace:
    """One request's, whose span has begun."""

    def __init__(self, tracer: Tracer, context: TraceContext) -> None:
        self._tracer = tracer
        self._context = context
        self._calls: list[_Call] = []
        self._held: list[Span] = []
        """From a loss until what was lost went on."""

    def given_up(self, choice: int) -> None:
        """The model tier that has this choice answers it no more."""
        for call in self._calls:
            if call.end_s is None and choice in call.choices:
                call.end_s = time.monotonic()

    def goes_down(self, context: RequestContext, target: str, choices: range) -> RequestContext:
        """These choices are sent to a model tier, at first or once more: the context to send along."""
        now_s = time.monotonic()
        lost = [call for call in self._calls if call.end_s is not None and call.has_any_of(choices)]
        if lost:
            lost[-1].followed = True
            self._held.append(self._place(lost[-1], now_s))
        call = _Call(self._context.child(), now_s, target, choices)
        self._calls.append(call)
        return replace(context, traceparent=call.context.traceparent)

    def end(self, arrival_s: float, timings: TokenizerTimings, attributes: Attributes, error: str) -> None:
        """Hand it over: it has ended now."""
        now_s = time.monotonic()
        context, calls = self._context, self._calls
        held = [*self._held, *(self._place(call, now_s) for call in calls if call.end_s and not call.followed)]

        def make() -> list[Span]:
            encoding_s = arrival_s + timings.queue_s
            encoded_s = encoding_s + timings.tokenize_s
            placed_s = max(encoded_s, calls[0].begin_s) if calls else now_s
            return [
                Span("tokenizer", context, arrival_s, now_s, "server", attributes, error),
                *phases(context, arrival_s, ("queue", encoding_s), ("tokenize", encoded_s), ("place", placed_s)),
                *(_span_of(call, now_s) for call in calls),
                *held,
            ]

        self._tracer.end(make)

    def _place(self, lost: _Call, until_s: float) -> Span:
        return Span("place", self._context.child(), lost.end_s or until_s, until_s)


def _span_of(call: _Call, now_s: float) -> Span:
    error = "" if call.end_s is None else "lost or refused"
    target: Attributes = {"tokenwire.target": call.target}
    return Span("generate", call.context, call.begin_s, call.end_s or now_s, "client", target, error)


def begin(tracer: Tracer, context: RequestContext) -> tuple[RequestTrace | None, RequestContext]:
    """A request's trace, None where it is not kept, and its context, which says so to the tiers below."""
    own = tracer.begin(context.traceparent)
    return RequestTrace(tracer, own) if own.sampled else None, replace(context, traceparent=own.traceparent)


@contextmanager
def embedding(tracer: Tracer | None, context: RequestContext, num_inputs: int) -> Iterator[RequestContext]:
    """A call to embed, as one span; gives the context to send along."""
    if tracer is None:
        yield context
        return
    own = tracer.begin(context.traceparent)
    context = replace(context, traceparent=own.traceparent)
    if not own.sampled:
        yield context
        return
    error = "cancelled"
    try:
        yield context
        error = ""
    except Exception as failure:
        error = failure.noted if isinstance(failure, TokenwireError) else type(failure).__name__
        raise
    finally:
        attributes: Attributes = {"tokenwire.request_id": context.request_id, "tokenwire.inputs": num_inputs}
        span = Span("tokenizer embed", own, context.arrival_s, time.monotonic(), "server", attributes, error)
        tracer.end(lambda: [span])
