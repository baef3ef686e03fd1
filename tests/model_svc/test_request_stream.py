import asyncio

import pytest

from model_svc import request_stream
from model_svc.request_stream import RequestStream, Response
from tokenwire.errors import Internal, InvalidRequest
from tokenwire.requests import FinishReason, Terminal, TokenLogprob

DONE = Terminal(FinishReason.LENGTH)


def failed(message: str) -> Terminal:
    return Terminal(FinishReason.ERROR, error=InvalidRequest(message))


def taken(stream: RequestStream) -> list[Response]:
    stream.flush()
    return asyncio.run(stream.take())


def test_steps_merge_and_each_choice_ends_with_its_finish() -> None:
    stream = RequestStream(2)
    for token_id in (5, 6):
        stream.on_token(0, token_id, None)
        stream.flush()
    stream.on_token(1, 7, None)
    stream.on_end(1, DONE)
    responses = {response.choice: response for response in taken(stream)}
    assert list(responses[0].token_ids) == [5, 6] and not responses[0].HasField("finish")
    assert list(responses[1].token_ids) == [7] and responses[1].HasField("finish")
    assert stream.num_open == 1


def test_one_choices_error_is_its_finish_and_the_others_go_on() -> None:
    stream = RequestStream(2)
    stream.on_end(0, failed("no token left"))
    stream.on_token(1, 7, None)
    responses = {response.choice: response for response in taken(stream)}
    assert responses[0].finish.error.message == "no token left" and list(responses[1].token_ids) == [7]
    stream.on_end(1, DONE)
    taken(stream)
    assert stream.num_open == 0 and stream.failure is None


@pytest.mark.parametrize("num_choices", [1, 3])
def test_when_every_choice_failed_the_request_did(num_choices: int) -> None:
    stream = RequestStream(num_choices)
    stream.on_token(0, 7, None)
    for choice in range(num_choices):
        stream.on_end(choice, Terminal(FinishReason.ERROR, error=Internal("a bug")))
    responses = taken(stream)
    assert list(responses[0].token_ids) == [7], "what came before is given out"
    assert [response.HasField("finish") for response in responses] == [num_choices > 1] * num_choices
    assert stream.num_open == 0 and isinstance(stream.failure, Internal)


def test_many_logprobs_are_spread_over_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_stream, "MAX_LOGPROB_ENTRIES", 4)
    stream = RequestStream(1)
    for token_id in range(6):
        stream.on_prompt_logprobs(0, [TokenLogprob(token_id, -1.0, (TokenLogprob(0, -1.0),))])
        stream.flush()
    responses = taken(stream)
    assert [[e.token_id for e in response.prompt_logprobs] for response in responses] == [[0, 1], [2, 3], [4, 5]]
