import asyncio
from typing import Any

import pytest
from smg_grpc_proto import vllm_engine_pb2 as pb

from model_svc.vllm_engine.answers import ChoiceAnswer, GenerateAnswers
from tokenwire.errors import DeadlineExceeded, Unavailable
from tokenwire.requests import FinishReason, Terminal, TokenLogprob, Usage


class EveryThird:
    """Stop strings that match at the third token."""

    def __init__(self) -> None:
        self.num = 0

    def push(self, token_id: int) -> str | None:
        self.num += 1
        return "third" if self.num == 3 else None


def answers_of(*, num: int = 1, stream: bool = True, stops: Any = None, **options: Any) -> tuple[GenerateAnswers, list]:
    matched: list[int] = []
    values = {"prompt_logprobs": False, "stop_token_ids": (), **options}
    choices = [ChoiceAnswer(index, stops) for index in range(num)]
    return GenerateAnswers([1, 2, 3], choices, stream=stream, on_matched=matched.append, **values), matched


def taken(answers: GenerateAnswers) -> list[pb.GenerateResponse]:
    async def main() -> list[pb.GenerateResponse]:
        async with asyncio.timeout(1):
            return await answers.take()

    return asyncio.run(main())


def logprob(token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, -0.5, (TokenLogprob(token_id, -0.5), TokenLogprob(9, -1.5)))


def test_chunks_have_what_is_new_and_the_complete_message_everything() -> None:
    answers, _ = answers_of()
    answers.on_token(0, 5, None)
    answers.flush()
    (first,) = taken(answers)
    assert (list(first.chunk.token_ids), first.chunk.prompt_tokens, first.chunk.completion_tokens) == ([5], 3, 1)
    answers.on_token(0, 6, None)
    answers.flush()
    answers.on_token(0, 7, None)
    answers.on_end(0, Terminal(FinishReason.LENGTH, Usage(3, 2, 3)))
    answers.flush()
    chunk, complete = taken(answers)
    assert list(chunk.chunk.token_ids) == [6, 7] and chunk.chunk.completion_tokens == 3
    end = complete.complete
    assert (list(end.output_ids), end.finish_reason, end.prompt_tokens) == ([5, 6, 7], "length", 3)
    assert (end.completion_tokens, end.cached_tokens) == (3, 2) and end.WhichOneof("matched_stop") is None
    assert answers.over and answers.failure is None


def test_without_stream_there_is_one_message_a_choice_at_the_end() -> None:
    answers, _ = answers_of(num=2, stream=False)
    for step in range(3):
        for choice in range(2):
            answers.on_token(choice, step, None)
        answers.flush()
    answers.on_end(1, Terminal(FinishReason.LENGTH, Usage(3, 0, 3)))
    answers.flush()
    with pytest.raises(TimeoutError):
        taken(answers)
    answers.on_end(0, Terminal(FinishReason.STOP_TOKEN, Usage(3, 0, 3), stop_token_id=4))
    answers.flush()
    found = taken(answers)
    assert sorted(message.complete.index for message in found) == [0, 1]
    assert {message.complete.finish_reason for message in found} == {"length", "stop"}


def test_only_stop_tokens_of_the_request_are_named() -> None:
    for asked, named in (((4,), "matched_token_id"), ((), None)):
        answers, _ = answers_of(stop_token_ids=asked)
        answers.on_end(0, Terminal(FinishReason.STOP_TOKEN, stop_token_id=4))
        answers.flush()
        (complete,) = taken(answers)
        assert complete.complete.finish_reason == "stop" and not complete.complete.output_ids
        assert complete.complete.WhichOneof("matched_stop") == named


def test_a_stop_string_ends_a_choice_at_its_token() -> None:
    answers, matched = answers_of(stops=EveryThird())
    for token_id in (5, 6, 7, 8):
        answers.on_token(0, token_id, logprob(token_id))
    assert matched == [0]
    answers.on_end(0, Terminal(FinishReason.CANCELLED, Usage(3, 0, 4)))
    answers.flush()
    chunk, complete = taken(answers)
    assert list(chunk.chunk.token_ids) == [5, 6, 7] and len(chunk.chunk.output_logprobs.token_ids) == 3
    assert (complete.complete.finish_reason, complete.complete.matched_stop_str) == ("stop", "third")
    assert complete.complete.completion_tokens == 3


def test_a_match_outranks_an_engine_that_is_lost() -> None:
    answers, _ = answers_of(stops=EveryThird())
    for token_id in (5, 6, 7):
        answers.on_token(0, token_id, None)
    answers.on_end(0, Terminal(FinishReason.ERROR, error=Unavailable("lost")))
    answers.flush()
    assert taken(answers)[-1].complete.finish_reason == "stop" and answers.failure is None


@pytest.mark.parametrize(
    ("terminal", "error"),
    [
        (Terminal(FinishReason.ERROR, error=Unavailable("lost")), Unavailable),
        (Terminal(FinishReason.DEADLINE), DeadlineExceeded),
    ],
)
def test_the_last_choices_error_is_the_calls(terminal: Terminal, error: type[Exception]) -> None:
    answers, _ = answers_of()
    answers.on_token(0, 5, None)
    answers.on_end(0, terminal)
    answers.flush()
    assert taken(answers) == [] and answers.over and isinstance(answers.failure, error)


def test_one_choice_of_two_may_fail() -> None:
    answers, _ = answers_of(num=2)
    answers.on_end(0, Terminal(FinishReason.ERROR, error=Unavailable("lost")))
    answers.on_end(1, Terminal(FinishReason.CANCELLED))
    answers.flush()
    assert [message.complete.finish_reason for message in taken(answers)] == ["error", "abort"]
    assert answers.failure is None


def test_logprobs_of_prompt_and_output() -> None:
    answers, _ = answers_of(prompt_logprobs=True)
    answers.on_prompt_logprobs(0, [logprob(2)])
    answers.on_prompt_logprobs(0, [logprob(3)])
    answers.on_token(0, 5, logprob(5))
    answers.flush()
    chunk = taken(answers)[0].chunk
    prompt = chunk.input_logprobs
    assert list(prompt.token_ids) == [1, 2, 3] and len(prompt.token_logprobs) == len(prompt.top_logprobs) == 3
    assert not prompt.token_logprobs[0].HasField("value") and prompt.token_logprobs[1].value == -0.5
    assert list(chunk.output_logprobs.token_logprobs) == [-0.5]
    assert list(chunk.output_logprobs.top_logprobs[0].token_ids) == [5, 9]
    answers.on_token(0, 6, logprob(6))
    answers.on_end(0, Terminal(FinishReason.LENGTH))
    answers.flush()
    chunk, complete = taken(answers)
    assert not chunk.chunk.HasField("input_logprobs") and list(chunk.chunk.output_logprobs.token_ids) == [6]
    assert not complete.complete.HasField("output_logprobs") and not complete.complete.HasField("input_logprobs")
