"""What a trace says of a request that goes on elsewhere."""

import asyncio
import time
from pathlib import Path

from tests.fakes.scripted_replica import ScriptedReplica, settle, start, tier_over
from tests.fakes.spans import keeping_tracer
from tokenizer_svc import part as parts
from tokenizer_svc.text_request import TextRequest
from tokenizer_svc.tokenizer import Tokenizer
from tokenizer_svc.tracing import begin
from tokenwire.requests import GenerationOptions, RequestContext, TokenizerTimings


def test_what_goes_on_elsewhere_is_a_call_of_its_own() -> None:
    tracer, kept = keeping_tracer()
    arrival_s = time.monotonic()
    trace, context = begin(tracer, RequestContext("r", arrival_s=arrival_s))
    assert trace is not None
    first = trace.goes_down(context, "a:1", range(0, 3))
    trace.given_up(1)  # lost there: the others had ended
    again = trace.goes_down(context, "b:1", range(1, 2))
    trace.end(arrival_s, TokenizerTimings(), {"tokenwire.resumes": 1}, "")
    ((server, *_, lost, last, held),) = kept.requests
    assert (lost.attributes["tokenwire.target"], last.attributes["tokenwire.target"]) == ("a:1", "b:1")
    assert held.name == "place" and lost.end_s == held.begin_s < held.end_s <= last.begin_s
    assert held.context.parent_id == server.context.span_id and last.end_s == server.end_s
    assert lost.error and not last.error and not server.error
    assert [first.traceparent, again.traceparent] == [lost.context.traceparent, last.context.traceparent]
    assert lost.context.parent_id == last.context.parent_id == server.context.span_id


def test_what_is_lost_and_goes_nowhere_is_held_to_the_end() -> None:
    tracer, kept = keeping_tracer()
    trace, context = begin(tracer, RequestContext("r"))
    assert trace is not None
    trace.goes_down(context, "a:1", range(0, 2))
    trace.given_up(0)
    trace.given_up(1)
    trace.end(context.arrival_s, TokenizerTimings(), {}, "MODEL_TIER_LOST")
    ((server, *_, lost, held),) = kept.requests
    assert (held.name, held.begin_s, held.end_s) == ("place", lost.end_s, server.end_s)


def test_what_waits_for_its_model_tier_to_come_back_is_not_said_to_be_generated(trained_folder: Path) -> None:
    async def main() -> None:
        tokenizer = Tokenizer.load(trained_folder)
        only = ScriptedReplica("only", lambda _: [5] * 8)
        tier = tier_over(tokenizer, only)
        tier.tracer, kept = keeping_tracer()
        _, sink = await start(tier, TextRequest(RequestContext("r"), "", (1, 2, 3), GenerationOptions()))
        only.submitted[0].say(0, 5)
        only.lose()
        lost_s = time.monotonic()
        await settle()
        only.ready = True
        async with asyncio.timeout(30):
            while len(only.submitted) == 1:
                await asyncio.sleep(0.01)
        again_s = time.monotonic()
        only.finish_all()
        await settle()
        assert sink.choices[0].terminal
        (spans,) = kept.requests
        first, second = (span for span in spans if span.name == "generate")
        *_, held = (span for span in spans if span.name == "place")
        assert first.end_s == held.begin_s <= lost_s and lost_s + parts.AVOID_S / 2 < held.end_s <= second.begin_s
        assert second.begin_s <= again_s and first.error and not second.error

    asyncio.run(main())


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
