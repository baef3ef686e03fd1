"""What the engine can do besides plain decoding, through every tier, on the real model in fp32."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.reference import Reference
from tokenwire.client import Client, Message
from tokenwire.errors import InvalidRequest

pytestmark = pytest.mark.model

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown fox"
LOGPROB_TOLERANCE = 1e-3
"""Thirty layers in another order of additions; the tiny models of the golden tests are held to 1e-4."""


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.grpc_target) as connected:
        yield connected


def prompt_ids(reference: Reference, text: str = PROMPT) -> list[int]:
    ids: list[int] = reference.tokenizer(text)["input_ids"]
    return ids


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_repetition_penalty_is_that_of_transformers(client: Client, reference: Reference, penalty: float) -> None:
    wanted = reference.generate(prompt_ids(reference), 20, repetition_penalty=penalty)
    options = {"temperature": 0, "max_tokens": 20, "return_token_ids": True}
    with client.generate(PROMPT, **options, repetition_penalty=penalty) as stream:
        (output,) = stream.outputs()
    assert list(output.token_ids) == wanted


def test_banned_sequences_are_those_of_transformers(client: Client, reference: Reference) -> None:
    plain = reference.generate(prompt_ids(reference), 12)
    banned = [plain[2:4], [plain[6]]]
    wanted = reference.generate(prompt_ids(reference), 12, bad_words_ids=banned)
    assert wanted != plain
    with client.generate(
        PROMPT, temperature=0, max_tokens=12, banned_sequences=banned, return_token_ids=True
    ) as stream:  # fmt: skip
        (output,) = stream.outputs()
    assert list(output.token_ids) == wanted


def test_logprobs_of_prompt_and_output_are_those_of_transformers(client: Client, reference: Reference) -> None:
    ids = prompt_ids(reference)
    with client.generate(
        PROMPT, temperature=0, max_tokens=10, logprobs=3, prompt_logprobs=2, return_token_ids=True
    ) as stream:  # fmt: skip
        (output,) = stream.outputs()
    whole = [*ids, *output.token_ids]
    expected = reference.logprobs(whole)
    entries = [*output.prompt_logprobs, *output.logprobs]
    assert [entry.token_id for entry in entries] == whole[1:]
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=LOGPROB_TOLERANCE)
        best = expected[position].topk(len(entry.top))
        assert [top.logprob for top in entry.top] == pytest.approx(best.values.tolist(), abs=LOGPROB_TOLERANCE)
    assert [len(entry.top) for entry in output.prompt_logprobs] == [2] * (len(ids) - 1)
    assert "".join(entry.text for entry in output.logprobs) == output.text


def test_a_conversation_goes_on_from_the_cache_with_the_same_answer(client: Client, reference: Reference) -> None:
    question = "Name three rivers of Europe, and say in which countries they flow."
    turns = [Message("user", question)]
    with client.chat(turns, temperature=0, max_tokens=24) as stream:
        (first,) = stream.outputs()
    turns += [Message("assistant", first.text), Message("user", "Thank you. Which of them is the longest?")]
    as_dicts = [{"role": turn.role, "content": turn.content} for turn in turns]
    encoded = reference.tokenizer.apply_chat_template(as_dicts, add_generation_prompt=True, return_dict=True)
    with client.chat(turns, temperature=0, max_tokens=24, return_token_ids=True) as stream:
        (second,) = stream.outputs()
    assert list(second.token_ids) == reference.generate(encoded["input_ids"], 24)
    usage = second.terminal.usage
    assert usage.cached_tokens >= first.terminal.usage.prompt_tokens // 16 * 16 > 0
    assert usage.prompt_tokens == len(encoded["input_ids"])


def test_choices_share_the_prompt_and_each_is_what_it_would_be_again(client: Client) -> None:
    text = "Here is a list of things that a ship's cook on a long voyage must never run out of, in order: first"
    with client.generate(text, temperature=0.9, seed=11, max_tokens=12, num_choices=4) as stream:
        outputs = stream.outputs()
    assert len({output.text for output in outputs}) == 4
    assert sum(output.terminal.usage.cached_tokens > 0 for output in outputs) >= 3
    with client.generate(text, temperature=0.9, seed=11, max_tokens=12, num_choices=4) as stream:
        assert [output.text for output in stream.outputs()] == [output.text for output in outputs]


def test_constraints_that_leave_nothing_are_a_typed_error(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="leave no token") as caught:
        client.generate("x", allowed_token_ids=[5], banned_sequences=[[5]]).text()
    assert caught.value.reason == "NO_TOKEN_LEFT"
