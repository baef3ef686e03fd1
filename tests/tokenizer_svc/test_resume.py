"""Streams that are cut: at every position, what the client sees is what an undisturbed run gives."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.scripted_replica import Received, Script, ScriptedReplica, Sink, settle, start, tier_over
from tokenizer_svc import part as parts
from tokenizer_svc.text_request import TextRequest
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import InvalidRequest, Overloaded, Unavailable
from tokenwire.requests import CancelReason, FinishReason, GenerationOptions, RequestContext, Terminal, deadline_after
from tokenwire.sampling import SamplingParams, StopParams

TEXTS = ["The fox: 🦊🦊, naïve 日本語 and so on STOP here", "한국어 😀 ST and STO, then what is not the end"]


@pytest.fixture(scope="module")
def tokenizer(trained_folder: Path) -> Tokenizer:
    return Tokenizer.load(trained_folder)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).token_ids


def script_of(tokenizer: Tokenizer) -> Script:
    outputs = [ids_of(tokenizer, text) for text in TEXTS]
    return lambda choice: outputs[choice % len(outputs)]


def request_of(tokenizer: Tokenizer, *, context: RequestContext | None = None, **options: Any) -> TextRequest:
    prompt = tuple(ids_of(tokenizer, "Once upon a time"))
    context = context or RequestContext("r1")
    return TextRequest(context, "", prompt, GenerationOptions(**{"return_token_ids": True, **options}))


async def cut_at(
    tokenizer: Tokenizer, request: TextRequest, cuts: list[tuple[int, ...]], *, step: int = 1
) -> list[Received]:
    """Run over several replicas; after each cut (how far each choice is by then) the one that has it is lost."""
    replicas = [ScriptedReplica(str(n), script_of(tokenizer)) for n in range(len(cuts) + 1)]
    for number, replica in enumerate(replicas):
        replica.load = float(number)
    _, sink = await start(tier_over(tokenizer, *replicas), request)
    for replica, cut in zip(replicas, cuts, strict=False):
        for submitted in list(replica.submitted):
            for choice in list(submitted.receivers):
                while choice in submitted.receivers and submitted.made[choice] < cut[choice]:
                    submitted.say(choice, min(step, cut[choice] - submitted.made[choice]))
        replica.lose()
        await settle()
    for replica in replicas:
        replica.finish_all()
    await settle()
    return [sink.choices[choice] for choice in range(request.options.num_choices)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"stop_strings": ("STOP",)},
    {"stop_strings": ("STOP", "naïve 日"), "include_stop_string": True, "stop": StopParams(min_tokens=12)},
    {"logprobs": 2, "prompt_logprobs": 1},
    {"logprobs": 0, "stop_strings": ("🦊,", "not the")},
    {"stop": StopParams(max_tokens=9)},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_choices", [1, 2])
def test_a_cut_anywhere_changes_nothing_that_is_seen(
    tokenizer: Tokenizer, options: dict[str, Any], num_choices: int
) -> None:
    async def main() -> None:
        request = request_of(tokenizer, num_choices=num_choices, **options)
        undisturbed = [received.shown for received in await cut_at(tokenizer, request, [])]
        longest = max(len(ids_of(tokenizer, text)) for text in TEXTS)
        for position in range(longest + 1):
            cut = (position, max(0, longest - position))
            found = await cut_at(tokenizer, request, [cut])
            for received, expected in zip(found, undisturbed, strict=True):
                assert without_cached(received.shown) == without_cached(expected), position
        found = await cut_at(tokenizer, request, [(3, 0), (3, 5), (11, 6)], step=3)
        assert [without_cached(r.shown) for r in found] == [without_cached(shown) for shown in undisturbed]

    asyncio.run(main())


def without_cached(shown: tuple[Any, ...]) -> tuple[Any, ...]:
    """A lost terminal event takes the count of cached tokens with it, where the output was complete."""
    return (*shown[:-1], replace(shown[-1], cached_tokens=0))


@given(cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3), step=st.integers(1, 7))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_several_cuts_of_two_choices_with_frames_of_any_size(
    tokenizer: Tokenizer, cuts: list[tuple[int, int]], step: int
) -> None:
    async def main() -> None:
        request = request_of(tokenizer, num_choices=2, logprobs=1, prompt_logprobs=0, stop_strings=("STOP",))
        undisturbed = [received.shown for received in await cut_at(tokenizer, request, [])]
        found = await cut_at(tokenizer, request, list(cuts), step=step)
        assert [without_cached(r.shown) for r in found] == [without_cached(shown) for shown in undisturbed]

    asyncio.run(main())


def test_what_is_submitted_to_go_on(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        first = ScriptedReplica("first", script_of(tokenizer), max_context_tokens=200)
        second = ScriptedReplica("second", script_of(tokenizer), max_context_tokens=300)
        second.load = 1.0
        sampling = SamplingParams(temperature=1.0, frequency_penalty=0.5, repetition_penalty=1.2)
        context = RequestContext("r1", 3, "tenant", deadline_after(asyncio.get_running_loop().time(), 100.0))
        request = request_of(
            tokenizer, context=context, num_choices=3, sampling=sampling, stop_strings=("STOP",), prompt_logprobs=1,
            stop=StopParams(min_tokens=2),
        )  # fmt: skip
        tier = tier_over(tokenizer, first, second)
        await start(tier, replace(request, cache_salt="salt"))
        (whole,) = first.submitted
        assert whole.submission.options.stop.max_tokens is None and whole.submission.first_choice == 0
        whole.say(0, 4)
        first.lose()
        await settle()
        rest, begun = second.submitted
        num_prompt = len(whole.submission.token_ids)
        assert (begun.submission.first_choice, begun.submission.options.num_choices) == (0, 1)
        assert begun.submission.token_ids == [*whole.submission.token_ids, *script_of(tokenizer)(0)[:4]]
        assert begun.submission.num_generated_tokens == 4
        assert begun.submission.options.prompt_logprobs is None, "they are not sent twice"
        assert (rest.submission.first_choice, rest.submission.options.num_choices) == (1, 2)
        assert rest.submission.options.prompt_logprobs == 1 and rest.submission.num_generated_tokens == 0
        for resumed in (rest.submission, begun.submission):
            assert resumed.options.sampling == whole.submission.options.sampling, "the same seed too"
            assert resumed.options.stop == StopParams(max_tokens=200 - num_prompt, min_tokens=2)
            assert (resumed.cache_salt, resumed.vocabulary) == ("salt", tokenizer.fingerprint)
            assert (resumed.context.request_id, resumed.context.priority, resumed.context.tenant) == ("r1", 3, "tenant")
            assert resumed.context.deadline_s == whole.submission.context.deadline_s
        assert tier.metrics.resumes._value.get() == 1 and tier.metrics.retries._value.get() == 1

    asyncio.run(main())


def test_prompt_log_probabilities_of_which_some_came_are_completed(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        first, second = (ScriptedReplica(name, script_of(tokenizer)) for name in ("first", "second"))
        second.load = 1.0
        request = request_of(tokenizer, num_choices=2, prompt_logprobs=1)
        _, sink = await start(tier_over(tokenizer, first, second), request)
        first.submitted[0].say_prompt(0, end=3)
        first.lose()
        await settle()
        assert [s.submission.first_choice for s in second.submitted] == [1, 0]
        second.finish_all()
        assert isinstance(request.input, tuple)
        for choice in range(2):
            assert [t.token_id for t in sink.choices[choice].prompt_logprobs] == list(request.input[1:])

    asyncio.run(main())


def test_resumes_are_bounded_and_the_last_loss_is_the_error(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        replicas = [ScriptedReplica(str(n), script_of(tokenizer)) for n in range(5)]
        for number, replica in enumerate(replicas):
            replica.load = float(number)
        _, sink = await start(tier_over(tokenizer, *replicas, max_resumes=2), request_of(tokenizer))
        for replica in replicas[:3]:
            replica.submitted[0].say(0, 2)
            replica.lose()
            await settle()
        assert not replicas[3].submitted
        terminal = sink.choices[0].terminal
        assert terminal is not None and isinstance(terminal.error, Unavailable)
        assert terminal.error.reason == "MODEL_TIER_LOST" and "model tier at 2 was lost" in terminal.error.message
        assert terminal.usage.completion_tokens == 6

    asyncio.run(main())


def test_the_same_model_tier_may_go_on_once_it_is_back(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "AVOID_S", 0.05)

    async def main() -> None:
        only = ScriptedReplica("only", script_of(tokenizer))
        tier = tier_over(tokenizer, only)
        _, sink = await start(tier, request_of(tokenizer))
        only.submitted[0].say(0, 5)
        only.lose()
        await settle()
        assert tier.dispatcher.num_held == 1 and not sink.choices[0].terminal
        only.ready = True
        async with asyncio.timeout(5):
            while len(only.submitted) == 1:
                await asyncio.sleep(0.01)
        only.finish_all()
        assert sink.choices[0].text == TEXTS[0]

    asyncio.run(main())


def test_an_engine_that_is_lost_is_resumed_elsewhere_though_its_tier_looks_well(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        first, second = (ScriptedReplica(name, script_of(tokenizer)) for name in ("first", "second"))
        second.load = 1.0
        _, sink = await start(tier_over(tokenizer, first, second), request_of(tokenizer))
        submitted = first.submitted[0]
        submitted.say(0, 5)
        error = Unavailable("the engine process was lost", reason="ENGINE_LOST")
        submitted.receivers.pop(0).on_finish(Terminal(FinishReason.ERROR, error=error))
        await settle()
        second.finish_all()
        assert sink.choices[0].text == TEXTS[0] and len(first.submitted) == 1

    asyncio.run(main())


def test_without_a_budget_what_has_begun_goes_on_and_what_has_not_ends(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        first, second = (ScriptedReplica(name, script_of(tokenizer)) for name in ("first", "second"))
        second.load = 1.0
        tier = tier_over(tokenizer, first, second, retry_budget=1)
        sinks = [(await start(tier, request_of(tokenizer, context=RequestContext(f"r{n}"))))[1] for n in range(3)]
        first.submitted[0].say(0, 5)
        first.lose()
        await settle()
        second.finish_all()
        await settle()
        ends = [sink.choices[0].terminal for sink in sinks]
        assert sinks[0].choices[0].text == sinks[1].choices[0].text == TEXTS[0]
        assert ends[2] is not None and ends[2].error is not None and ends[2].error.reason == "MODEL_TIER_LOST"
        assert tier.retry_budget.left == pytest.approx(0.4), "two ended well since"

    asyncio.run(main())


def test_without_another_in_time_the_loss_is_the_error(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        only = ScriptedReplica("only", script_of(tokenizer))
        tier = tier_over(tokenizer, only, wait_s=0.2)
        _, sink = await start(tier, request_of(tokenizer))
        only.submitted[0].say(0, 5)
        only.lose()
        async with asyncio.timeout(5):
            while sink.choices[0].terminal is None:
                await asyncio.sleep(0.01)
        error = sink.choices[0].terminal.error
        assert error is not None and error.reason == "MODEL_TIER_LOST" and error.retry_after_s
        assert sink.choices[0].num_tokens == 5 and tier.running == 0 and tier.dispatcher.num_held == 0

    asyncio.run(main())


def test_a_deadline_ends_what_waits_to_go_on(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        only = ScriptedReplica("only", script_of(tokenizer))
        tier = tier_over(tokenizer, only)
        deadline_s = deadline_after(asyncio.get_running_loop().time(), 0.1)
        request = request_of(tokenizer, context=RequestContext("r", deadline_s=deadline_s))
        _, sink = await start(tier, request)
        only.submitted[0].say(0, 5)
        only.lose()
        async with asyncio.timeout(5):
            while sink.choices[0].terminal is None:
                await asyncio.sleep(0.01)
        terminal = sink.choices[0].terminal
        assert terminal.reason is FinishReason.DEADLINE and terminal.usage.completion_tokens == 5
        assert tier.dispatcher.num_held == 0 and tier.running == 0

    asyncio.run(main())


def test_what_the_client_took_back_is_not_resumed(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        class Slow(ScriptedReplica):
            """Its terminal event is on its way."""

            def submit(self, submission: Any, receivers: Any) -> Any:
                submitted = super().submit(submission, receivers)
                submitted.cancel = lambda choice, reason: None  # type: ignore[method-assign]
                return submitted

        first, second = Slow("first", script_of(tokenizer)), ScriptedReplica("second", script_of(tokenizer))
        second.load = 1.0
        running, sink = await start(tier_over(tokenizer, first, second), request_of(tokenizer, num_choices=2))
        first.submitted[0].say(0, 5)
        running.cancel(0, CancelReason.CLIENT)
        assert 0 not in sink.choices or sink.choices[0].terminal is None
        first.lose()
        terminal = sink.choices[0].terminal
        assert terminal is not None and terminal.reason is FinishReason.CANCELLED
        assert terminal.usage.completion_tokens == 5
        await settle()
        assert [s.submission.first_choice for s in second.submitted] == [1]

    asyncio.run(main())


def test_a_client_that_goes_while_its_request_waits_leaves_nothing(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        only = ScriptedReplica("only", script_of(tokenizer))
        tier = tier_over(tokenizer, only)
        running, sink = await start(tier, request_of(tokenizer, num_choices=2))
        only.submitted[0].say(0, 5)
        only.lose()
        running.cancel(0, CancelReason.CLIENT)  # in the very turn in which it was lost
        await settle()
        assert tier.dispatcher.num_held == 1
        running.close()
        assert tier.dispatcher.num_held == 0 and tier.running == 0
        assert all(received.terminal is not None for received in sink.choices.values())

    asyncio.run(main())


def test_a_complete_output_whose_end_was_lost_is_a_length(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        first, second = (ScriptedReplica(name, script_of(tokenizer)) for name in ("first", "second"))
        second.load = 1.0
        request = request_of(tokenizer, stop=StopParams(max_tokens=6))
        _, sink = await start(tier_over(tokenizer, first, second), request)
        first.submitted[0].say(0, 6)
        first.lose()
        await settle()
        terminal = sink.choices[0].terminal
        assert terminal is not None and terminal.reason is FinishReason.LENGTH and not second.submitted
        assert (terminal.usage.prompt_tokens, terminal.usage.completion_tokens) == (len(request.input), 6)

    asyncio.run(main())


def test_a_replica_with_too_short_a_context_is_left_out(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        first = ScriptedReplica("first", script_of(tokenizer), max_context_tokens=100)
        short = ScriptedReplica("short", script_of(tokenizer), max_context_tokens=20)
        short.load = -1.0
        request = request_of(tokenizer, stop=StopParams(max_tokens=50))
        _, sink = await start(tier_over(tokenizer, first, short), request)
        assert first.submitted and not short.submitted
        _, refused = await start(
            tier_over(tokenizer, first, short), request_of(tokenizer, stop=StopParams(max_tokens=100))
        )
        terminal = refused.choices[0].terminal
        assert terminal is not None and isinstance(terminal.error, InvalidRequest)
        assert not sink.choices

    asyncio.run(main())


def held(tokenizer: Tokenizer, *, room: int, **tier: Any) -> tuple[ScriptedReplica, Any]:
    replica = ScriptedReplica("only", script_of(tokenizer))
    replica.room = room
    return replica, tier_over(tokenizer, replica, **tier)


def test_a_refusal_for_a_full_queue_is_held_and_goes_when_there_is_room(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        replica, tier = held(tokenizer, room=2)
        _, sink = await start(tier, request_of(tokenizer, num_choices=2))
        submitted = replica.submitted[0]
        for choice in range(2):
            error = Overloaded("full", reason="QUEUE_FULL", retry_after_s=1.0)
            submitted.receivers.pop(choice).on_finish(Terminal(FinishReason.ERROR, error=error))
        await settle()
        assert tier.dispatcher.num_held == 2 and not sink.choices
        replica.room = 2
        tier.dispatcher.on_room()
        replica.finish_all()
        assert [sink.choices[choice].text for choice in range(2)] == TEXTS
        assert tier.metrics.bounced._value.get() == 1 and tier.metrics.retries._value.get() == 0

    asyncio.run(main())


def test_a_model_tier_without_credits_refuses_for_itself(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        replica, tier = held(tokenizer, room=1)
        replica.leases_room = False
        _, sink = await start(tier, request_of(tokenizer))
        error = Overloaded("full", reason="QUEUE_FULL", retry_after_s=1.0)
        replica.submitted[0].receivers.pop(0).on_finish(Terminal(FinishReason.ERROR, error=error))
        terminal = sink.choices[0].terminal
        assert terminal is not None and terminal.error is error

    asyncio.run(main())


def test_held_requests_end_by_deadline_cancel_and_close(tokenizer: Tokenizer) -> None:
    async def main() -> None:
        replica, tier = held(tokenizer, room=0)
        deadline_s = deadline_after(asyncio.get_running_loop().time(), 0.1)
        _, late = await start(tier, request_of(tokenizer, context=RequestContext("a", deadline_s=deadline_s)))
        taken, cancelled = await start(tier, request_of(tokenizer, num_choices=2))
        left, _ = await start(tier, request_of(tokenizer))
        assert tier.dispatcher.num_held == 4
        taken.cancel(0, CancelReason.CLIENT)
        assert ends(cancelled) == [FinishReason.CANCELLED] and tier.dispatcher.num_held == 4, "one of its choices waits"
        taken.cancel(1, CancelReason.CLIENT)
        assert ends(cancelled) == [FinishReason.CANCELLED] * 2 and tier.dispatcher.num_held == 2
        left.close()
        assert tier.dispatcher.num_held == 1
        async with asyncio.timeout(5):
            while not ends(late):
                await asyncio.sleep(0.01)
        assert ends(late) == [FinishReason.DEADLINE]
        assert tier.dispatcher.num_held == 0 and tier.running == 0
        replica.room = 10
        tier.dispatcher.on_room()
        assert not replica.submitted

    asyncio.run(main())


def ends(sink: Sink) -> list[FinishReason]:
    return [received.terminal.reason for received in sink.choices.values() if received.terminal is not None]
