"""The model tier's part of a trace: a sequence's wait, prefill and decode and way out, as its terminal event has them.

The engine process measured them on the same clock; what has passed since its end is the way to this process. Does not
know the wire.
"""

import time

from model_svc.engine.sequence import Sequence
from tokenwire.requests import Terminal
from tokenwire.telemetry.tracing import Span, TraceContext, Tracer, phases


def trace_end(tracer: Tracer, context: TraceContext, sequence: Sequence, terminal: Terminal) -> None:
    """Hand over the spans of a sequence that has ended."""
    now_s, begin_s, usage = time.monotonic(), sequence.arrival_s, terminal.usage
    embeds = sequence.embedding is not None
    attributes: dict[str, str | int] = {
        "tokenwire.choice": sequence.choice,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    if not embeds:
        attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
        attributes["tokenwire.finish_reason"] = terminal.reason.value
    error = terminal.error.noted if terminal.error is not None else ""
    timings = terminal.model_timings

    def make() -> list[Span]:
        spans = [Span("model", context, begin_s, now_s, "server", attributes, error)]
        if timings is not None:
            started_s = begin_s + timings.queue_s
            first_s = started_s + timings.prefill_s
            ended_s = first_s + timings.decode_s
            computed = [("embed", ended_s)] if embeds else [("prefill", first_s), ("decode", ended_s)]
            spans += phases(context, begin_s, ("queue", started_s), *computed, ("send", now_s))
        return spans

    tracer.end(make)
