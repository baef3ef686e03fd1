"""Requests that bring output along: everything goes on as if it had been made here, choice by choice."""

import asyncio

import pytest

from model_svc.engine.mock_runner import mock_token
from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tokenwire.errors import InvalidRequest
from tokenwire.requests import FinishReason
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.wire import terminal_from_wire

PROMPT = [4, 5, 6]
VOCAB = 49_152


def resumed(
    output: list[int], *, first_choice: int = 0, max_tokens: int = 8, **context: object
) -> model_pb2.TokenRequest:
    request = token_request(PROMPT + output, max_tokens=max_tokens, **context)
    request.num_generated_tokens = len(output)
    request.first_choice = first_choice
    request.options.sampling.temperature = 1.0
    request.options.sampling.seed = 7
    return request


def whole(choice: int) -> list[int]:
    return [mock_token(PROMPT, 7, choice, position, VOCAB) for position in range(8)]


def test_every_choice_goes_on_from_every_position_with_its_own_noise() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            requests = {
                1 + 8 * choice + cut: resumed(whole(choice)[:cut], first_choice=choice)
                for choice in range(3)
                for cut in range(8)
            }
            await session.submit(requests)
            await session.read_until_finished(*requests)
            for handle in requests:
                choice, cut = divmod(handle - 1, 8)
                assert session.tokens[handle] == whole(choice)[cut:]
                usage = terminal_from_wire(session.finishes[handle]).usage
                assert (usage.prompt_tokens, usage.completion_tokens) == (3, 8)
                assert usage.cached_tokens <= 3

    asyncio.run(main())


def test_the_last_choices_of_a_request_go_on_together() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            request = resumed([], first_choice=2)
            request.options.num_choices = 3
            await session.submit({1: request})
            await session.read_until_finished(1, 2, 3)
            assert [session.tokens[handle] for handle in (1, 2, 3)] == [whole(2), whole(3), whole(4)]

    asyncio.run(main())


def test_parts_of_one_request_share_its_id_and_a_second_of_the_same_part_does_not() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=20.0) as live:
            session = await RawSession.open(live.stub)
            await session.submit({h: resumed(whole(h - 1)[:2], first_choice=h - 1, request_id="r") for h in (1, 2)})
            await session.submit({3: resumed(whole(1)[:2], first_choice=1, request_id="r")})
            await session.read_until_finished(1, 2, 3)
            reasons = [terminal_from_wire(session.finishes[handle]) for handle in (1, 2, 3)]
            assert [each.reason for each in reasons[:2]] == [FinishReason.LENGTH] * 2
            assert reasons[2].error is not None and reasons[2].error.reason == "DUPLICATE_REQUEST"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first_choice", "num_choices", "field"), [(128, 1, "first_choice"), (100, 29, "first_choice")]
)
def test_choices_that_no_request_has_are_refused(first_choice: int, num_choices: int, field: str) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            request = resumed([], first_choice=first_choice)
            request.options.num_choices = num_choices
            await session.submit({1: request})
            await session.read_until_finished(1)
            error = terminal_from_wire(session.finishes[1]).error
            assert isinstance(error, InvalidRequest) and [v.field for v in error.violations] == [field]

    asyncio.run(main())


def test_log_probabilities_of_the_prompt_are_those_of_the_prompt_alone() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            request = resumed(whole(0)[:4])
            request.options.output.CopyFrom(common_pb2.OutputOptions(logprobs=0, prompt_logprobs=0))
            await session.submit({1: request})
            await session.read_until_finished(1)
            messages = [message for frame in session.frames for message in frame.logprobs]
            assert [t.token_id for message in messages for t in message.prompt] == PROMPT[1:]
            assert [t.token_id for message in messages for t in message.tokens] == whole(0)[4:]

    asyncio.run(main())
