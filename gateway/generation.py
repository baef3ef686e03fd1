"""Opens text streams: one request of one or many prompts, whoever asks and over whichever protocol.

Knows time limits and which errors are one prompt's own. Does not know protocols.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gateway.backends import Backends
from gateway.identity.identity import identity_of_call
from gateway.metrics import GatewayMetrics, RequestRecord
from gateway.settings import GatewaySettings
from gateway.streams import TextStream
from gateway.submission import DEADLINE_GRACE_S
from gateway.text_requests import TextRequest
from tokenwire.errors import FieldViolation, TokenwireError, Unavailable, let_go
from tokenwire.requests import MAX_CHOICES, FinishReason, RequestContext, Terminal, deadline_after, numbered
from tokenwire.sampling import refuse
from tokenwire.telemetry.tracing import Tracer
from tokenwire.token_calls import refuse_count
from tokenwire.wire import CALL_ROUNDING, call_limit_s

LAST_MOMENT_S = 0.015
"""This long before a call's own limit the gateway ends it whatever the tiers below do."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and when the gateway itself ends what the tiers below did not end in time."""

    context: RequestContext
    give_up_s: float | None
    """Monotonic clock; None: never."""


def caller_of(context: RequestContext, call_deadline_s: float | None, default_timeout_s: float = 0.0) -> Caller:
    """Combine the request's own time limit, the call's and the default.

    `call_deadline_s`: when the client's own timer fires, on the monotonic clock.
    """
    deadline_s = context.deadline_s
    client_s = float("inf")
    if call_deadline_s is not None:
        left_s = max(0.0, call_deadline_s - context.arrival_s)
        client_s = call_deadline_s - CALL_ROUNDING * left_s
        limit_s = context.arrival_s + call_limit_s(left_s)
        deadline_s = limit_s if deadline_s is None else min(deadline_s, limit_s)
    if deadline_s is None and default_timeout_s > 0:
        deadline_s = context.arrival_s + default_timeout_s
    if deadline_s is None:
        return Caller(context, None)
    give_up_s = max(deadline_s, min(deadline_s + DEADLINE_GRACE_S, client_s - LAST_MOMENT_S))
    return Caller(replace(context, deadline_s=deadline_s), give_up_s)


class Generation:
    """What every protocol of the gateway generates through."""

    def __init__(
        self, settings: GatewaySettings, backends: Backends, metrics: GatewayMetrics, tracer: Tracer | None = None
    ) -> None:
        """`tracer`: None: nothing is traced."""
        self.settings = settings
        self.backends = backends
        self.metrics = metrics
        self.draining = False
        self._tracer = tracer

    def record(self, api: str) -> RequestRecord:
        """Begin to observe a request."""
        return RequestRecord(self.metrics, api)

    def refuse_when_draining(self) -> None:
        """Raise Unavailable for a new stream of requests once the gateway is on its way out."""
        if self.draining:
            raise Unavailable("the gateway is shutting down; send it elsewhere", reason="DRAINING", retry_after_s=1.0)

    def caller(self, record: RequestRecord, context: RequestContext, call_deadline_s: float | None = None) -> Caller:
        """Who asks, as whom they are known here, with the time limits that hold here.

        Raises PermissionDenied for what they may not ask for, and Unauthenticated when what they showed has lapsed.
        """
        trusted = self._trusts_decision()
        if self._tracer is not None:
            context = record.traced(self._tracer, context, trusted=trusted)
        elif not trusted and context.traceparent:
            context = replace(context, traceparent="")  # the tiers below trust whoever calls them
        return self._known(context, call_deadline_s)

    def _trusts_decision(self) -> bool:
        """Whether a `traceparent` of the call's decides if its trace is kept, wherever it stood."""
        who = self.settings.trace_callers
        return who == "all" or (who == "known" and identity_of_call().known)

    def _known(self, context: RequestContext, call_deadline_s: float | None = None) -> Caller:
        return caller_of(identity_of_call().restrict(context), call_deadline_s, self.settings.default_timeout_s)

    @contextmanager
    def charged_call(self, context: RequestContext, num_tokens: int = 0) -> Iterator[None]:
        """One request of the tenant's, which generates nothing, while the block runs. One that fails stays charged.

        `num_tokens`: what it is charged besides.

        Raises Overloaded, and as `caller`.
        """
        lease = self.backends.charge_call(self._known(context).context.tenant, num_tokens)
        try:
            yield
        finally:
            lease.settle(None, 0)

    def open(self, record: RequestRecord, caller: Caller, requests: Sequence[TextRequest]) -> TextStream:
        """Send prompts of equal options down. Close the stream.

        A call that there is no tier or no room for is refused whole, unless lower priorities make way. With one prompt
        an error is raised; with several it ends the outputs of its own prompt, and the others go on.
        """
        num_choices = requests[0].options.num_choices or 1
        if num_choices > MAX_CHOICES:
            allowed = f"{num_choices} is not allowed: an integer from 1 to {MAX_CHOICES}"
            refuse([FieldViolation("options.num_choices", allowed)])
        leases = self.backends.charge(caller.context.tenant, requests, num_choices)
        try:
            backend = self.backends.require(requests, num_choices, caller.context.priority)
        except TokenwireError:
            for lease in leases:
                lease.give_back()
            raise
        stream = TextStream(record, len(requests), num_choices)
        submit, give_up_s = self.backends.submit, caller.give_up_s
        if len(requests) == 1:
            (request,), (lease,), (outputs,) = requests, leases, stream.outputs
            stream.submissions.append(submit(request, caller.context, outputs, give_up_s, lease, backend))
            return stream
        for index, (request, lease) in enumerate(zip(requests, leases, strict=True)):
            outputs = stream.outputs[index]
            try:
                context = _numbered(caller.context, index)
                stream.submissions.append(submit(request, context, outputs, give_up_s, lease))
            except TokenwireError as error:
                let_go(error)
                for output in outputs:
                    output.on_finish(Terminal(FinishReason.ERROR, error=error))
        return stream

    def refuse_prompt_count(self, num_prompts: int, field: str) -> None:
        """Raise InvalidRequest for no prompt at all and for too many."""
        refuse_count(num_prompts, "prompts", field, self.settings.max_prompts)


def arriving(
    request_id: str, *, priority: int | None, tenant: str | None, timeout_s: float | None, traceparent: str = ""
) -> RequestContext:
    """Of a request that has come just now; None stands for what it does not say. Raises InvalidRequest."""
    arrival_s = time.monotonic()
    context = RequestContext(
        request_id=request_id,
        priority=priority or 0,
        tenant=tenant or "",
        deadline_s=deadline_after(arrival_s, timeout_s),
        traceparent=traceparent,
        arrival_s=arrival_s,
    )
    refuse(context.violations())
    return context


def now_plus(seconds: float | None) -> float | None:
    """That many seconds from now on the monotonic clock; None stays None."""
    return None if seconds is None else time.monotonic() + seconds


def _numbered(context: RequestContext, index: int) -> RequestContext:
    """Each prompt of a call runs under an id of its own: the call's, and `.index`."""
    return numbered(context, f".{index}")
