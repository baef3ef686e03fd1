"""What the gateway measures, and the one log line each request leaves behind."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from types import TracebackType

from prometheus_client import CollectorRegistry

from gateway.metric_labels import APIS, COMPUTING, GENERATING, HTTP_REFUSALS, IDENTITY_REFUSALS, LIMITS, OUTCOMES
from gateway.tracing import RequestTrace
from tokenwire.errors import DeadlineExceeded, TokenwireError
from tokenwire.logs import fields
from tokenwire.requests import FinishReason, GatewayTimings, RequestContext, Terminal, refuse_model_name
from tokenwire.routing.outcomes import ENDED_WELL
from tokenwire.telemetry import REGISTRY, TierMetrics
from tokenwire.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

SESSION_STATES = ("ready", "ejected", "not_serving", "unreachable", "leaving")
"""Of a session to a tokenizer tier; `not_serving`: no model is behind it; `leaving`: the tier is no longer listed."""

GIVEN_UP = {FinishReason.DEADLINE.value, DeadlineExceeded.code.lower(), FinishReason.CANCELLED.value}
"""Outcomes of requests that their clients, or their time limits, ended."""


class GatewayMetrics:
    """The gateway's metrics. One per process, or one per registry in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        make = TierMetrics("gateway", registry)
        self.described = make.described
        self.registry = registry
        self.requests = make.counter("requests_total", "Requests by API and how they ended", ["api", "outcome"])
        self.first_text = make.histogram("first_text_seconds", "From receipt to the first text", ["api"])
        self.unbegun = make.histogram(
            "unbegun_seconds",
            "From receipt to the end, of requests that ran out of time or were taken back before their first text",
            ["api"],
        )
        self.duration = make.histogram("request_seconds", "From receipt to the end", ["api"])
        self.requests_of = cache(self.requests.labels)
        self.first_text_of = cache(self.first_text.labels)
        self.unbegun_of = cache(self.unbegun.labels)
        self.duration_of = cache(self.duration.labels)
        gaps = make.histogram(
            "token_gap_seconds", "Mean time from one token to the next, of each request with one output", ["api"]
        )
        self.gap_of = cache(gaps.labels)
        self._begin_at_0()
        outputs = make.counter(
            "outputs_total",
            "Outputs (choices of prompts) by finish reason",
            ["reason"],
            known=[reason.value for reason in FinishReason],
        )
        self.ended_by = cache(outputs.labels)
        self.prompt_tokens = make.counter("prompt_tokens_total", "Tokens of the prompts that were answered")
        self.output_tokens = make.counter("output_tokens_total", "Tokens generated for clients")
        self._http_refusals = make.counter(
            "http_refusals_total", "HTTP requests that were not let in", ["reason"], known=HTTP_REFUSALS
        )
        self._identity_refusals = make.counter(
            "identity_refusals_total",
            "Callers that were not let in for what they showed",
            ["reason"],
            known=IDENTITY_REFUSALS,
        )
        self._limited = make.counter(
            "limited_total", "Requests refused for their tenant's limit", ["limit"], known=LIMITS
        )
        self.embedded = make.counter("embedded_total", "Inputs embedded for clients")
        self.embedded_tokens = make.counter("embedded_tokens_total", "Their tokens")
        self.open_streams = make.gauge("open_streams", "Prompts being answered")
        self.retries = make.counter("retries_total", "Prompts and calls sent to another tokenizer tier after a failure")
        self.ejections = make.counter("ejections_total", "Times that a tokenizer tier was found failing")
        self.traces = make.traces()
        self._sessions = make.gauge("tokenizer_sessions", "Sessions to tokenizer tiers by state", ["state"])

    def _begin_at_0(self) -> None:
        """The series that the objectives are reckoned from are there before their first request."""
        for api, outcome in product(APIS, OUTCOMES):
            self.requests_of(api, outcome)
        for api in GENERATING:
            self.first_text_of(api)
        for api in COMPUTING:
            self.unbegun_of(api)

    def show_sessions(self, states: Iterable[str]) -> None:
        """In which of SESSION_STATES each session to a tokenizer tier is now."""
        counts = Counter(states)
        for state in SESSION_STATES:
            self._sessions.labels(state).set(counts[state])

    def identity_refused(self, reason: str) -> None:
        """Count a caller that was not let in for what it showed, or did not show."""
        self._identity_refusals.labels(reason).inc()

    def limited(self, limit: str) -> None:
        """Count a request that was refused for its tenant's limit."""
        self._limited.labels(limit).inc()

    def http_refused(self, reason: str) -> None:
        """Count an HTTP request that was not let in."""
        self._http_refusals.labels(reason).inc()


class RequestRecord:
    """One request from receipt to its end: feeds the metrics and writes one log line.

    Use as a context manager, or call `close`. An error or a cancellation that leaves the block is its outcome.
    """

    def __init__(self, metrics: GatewayMetrics, api: str) -> None:
        self.api = api
        self.request_id = ""
        self._model = ""
        self.num_prompts = 0
        self._metrics = metrics
        self._arrival_s = time.monotonic()
        self.started = False
        """The first text has been handed to the transport."""
        self._first_text_s = 0.0
        self._prompt_tokens: dict[int, int] = {}
        """By prompt: its choices share it."""
        self._completion_tokens = 0
        self._outcome = "ok"
        self._message: str | None = None
        self._reasons: dict[str, int] = {}
        self._ended_s = 0.0
        """When the last output ended, from receipt."""
        self._trace: RequestTrace | None = None
        self._closed = False

    def asks_for(self, model: str, field: str = "model") -> None:
        """The name of the model that is asked for. Raises InvalidRequest for one that is too long to be any."""
        refuse_model_name(model, field)
        self._model = model

    def traced(self, tracer: Tracer, context: RequestContext, *, trusted: bool) -> RequestContext:
        """The request is understood: its span begins. Gives the context to send down.

        `trusted`: whether the caller decides if its trace is kept.
        """
        own = tracer.begin(context.traceparent, trusted=trusted)
        if not own.sampled:
            return replace(context, traceparent=own.traceparent)
        self._trace = RequestTrace(tracer, own, self._arrival_s)
        return replace(context, traceparent=self._trace.traceparent)

    def saw_text(self) -> None:
        """The first text is handed to the transport now; later calls change nothing."""
        if not self.started:
            self.started = True
            self._first_text_s = time.monotonic() - self._arrival_s
            self._metrics.first_text_of(self.api).observe(self._first_text_s)

    def timings(self) -> GatewayTimings:
        """Where the time went, by now."""
        return GatewayTimings(self._first_text_s, time.monotonic() - self._arrival_s)

    def ended(self, terminal: Terminal, prompt: int = 0) -> None:
        """One output of the request ended. What was refused before its first token counts no prompt."""
        usage = terminal.usage
        self._completion_tokens += usage.completion_tokens
        if terminal.error is None or usage.completion_tokens:
            self._prompt_tokens[prompt] = usage.prompt_tokens
        reason = terminal.reason
        self._reasons[reason.value] = self._reasons.get(reason.value, 0) + 1
        self._metrics.ended_by(reason.value).inc()
        self._ended_s = time.monotonic() - self._arrival_s
        if reason not in ENDED_WELL and self._outcome == "ok":
            self._outcome = terminal.error.code.lower() if terminal.error is not None else reason.value
            self._message = terminal.error.noted if terminal.error is not None else None

    def failed(self, error: BaseException) -> None:
        """The request as a whole ends with this."""
        if isinstance(error, TokenwireError):
            self._outcome, self._message = error.code.lower(), error.noted
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):  # the client has gone
            self._outcome = "cancelled"
        else:
            self._outcome, self._message = "internal", type(error).__name__

    def close(self) -> None:
        """Count and log; later calls change nothing."""
        if self._closed:
            return
        self._closed = True
        total_s = time.monotonic() - self._arrival_s
        self._metrics.requests_of(self.api, self._outcome).inc()
        self._metrics.duration_of(self.api).observe(total_s)
        if not self.started and self._outcome in GIVEN_UP:
            self._metrics.unbegun_of(self.api).observe(total_s)
        prompt_tokens = sum(self._prompt_tokens.values())
        if prompt_tokens:
            self._metrics.prompt_tokens.inc(prompt_tokens)
        if self.started and self._completion_tokens > 1 and sum(self._reasons.values()) == 1:
            gap_s = (self._ended_s - self._first_text_s) / (self._completion_tokens - 1)
            self._metrics.gap_of(self.api).observe(gap_s)
        if self._trace is not None:
            self._end_trace(self._trace)
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "request finished",
            extra=fields(
                request_id=self.request_id or None,
                api=self.api,
                model=self._model or None,
                outcome=self._outcome,
                reasons=",".join(f"{reason}:{count}" for reason, count in self._reasons.items()) or None,
                prompts=self.num_prompts or None,
                prompt_tokens=prompt_tokens or None,
                completion_tokens=self._completion_tokens or None,
                first_text_s=self._first_text_s if self.started else None,
                total_s=total_s,
                error=self._message,
            ),
        )

    def _end_trace(self, trace: RequestTrace) -> None:
        attributes: dict[str, str | int | float] = {
            "tokenwire.request_id": self.request_id,
            "tokenwire.outcome": self._outcome,
            "tokenwire.prompts": self.num_prompts,
            "gen_ai.request.model": self._model,
            "gen_ai.usage.input_tokens": sum(self._prompt_tokens.values()),
            "gen_ai.usage.output_tokens": self._completion_tokens,
        }
        if self.started:
            attributes["tokenwire.first_text_s"] = self._first_text_s
        answered_s = self._arrival_s + self._ended_s if self._reasons else None
        error = "" if self._outcome == "ok" else self._message or self._outcome
        trace.end(self.api, answered_s, attributes, error)

    def __enter__(self) -> "RequestRecord":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.failed(error)
        self.close()
