"""What a trace says of a request that goes on elsewhere."""

import time

from tests.fakes.spans import keeping_tracer
from tokenizer_svc.tracing import begin
from tokenwire.requests import RequestContext, TokenizerTimings


def test_what_goes_on_elsewhere_is_a_call_of_its_own() -> None:
    tracer, kept = keeping_tracer()
    arrival_s = time.monotonic()
    trace, context = begin(tracer, RequestContext("r", arrival_s=arrival_s))
    assert trace is not None
    first = trace.goes_down(context, "a:1", range(0, 3))
    again = trace.goes_down(context, "b:1", range(1, 2))  # lost there: the others had ended
    trace.end(arrival_s, TokenizerTimings(), {"tokenwire.resumes": 1}, "")
    ((server, *_, lost, last),) = kept.requests
    assert (lost.attributes["tokenwire.target"], last.attributes["tokenwire.target"]) == ("a:1", "b:1")
    assert lost.end_s == last.begin_s and last.end_s == server.end_s
    assert lost.error and not last.error and not server.error
    assert [first.traceparent, again.traceparent] == [lost.context.traceparent, last.context.traceparent]
    assert lost.context.parent_id == last.context.parent_id == server.context.span_id


def test_choices_that_are_apart_do_not_end_each_other() -> None:
    tracer, kept = keeping_tracer()
    trace, context = begin(tracer, RequestContext("r"))
    assert trace is not None
    for choice in range(2):
        trace.goes_down(context, "a:1", range(choice, choice + 1))
    trace.end(context.arrival_s, TokenizerTimings(), {}, "")
    ((server, *_, first, second),) = kept.requests
    assert first.end_s == second.end_s == server.end_s and not first.error


def test_what_is_not_kept_says_so_below() -> None:
    trace, context = begin(keeping_tracer(0.0)[0], RequestContext("r"))
    assert trace is None and context.traceparent.endswith("-00")
