"""Replay, options and ends of the sequences of StreamDetokenize, against the text that the internal path makes."""

import random
from functools import cache

import pytest

from tests.fakes.tokenizers_trained import TRAINED
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenizer_svc.stream_detokenize import OpenSequences
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import InvalidRequest
from tokenwire.requests import FinishReason, GenerationOptions
from tokenwire.sampling import StopParams


@cache
def tokenizer_of(family: str) -> Tokenizer:
    return Tokenizer(TRAINED[family](), fingerprint="", special_tokens={})


def random_case(family: str, seed: int) -> tuple[list[int], list[int], GenerationOptions]:
    tokenizer, source = tokenizer_of(family), random.Random(f"{family}{seed}")
    ids = [source.randrange(tokenizer.vocab_size) for _ in range(source.randint(1, 30))]
    options = GenerationOptions(
        stop=StopParams(min_tokens=source.choice((0, 0, 5))),
        stop_strings=source.choice(((), (), ("e",), ("th", "a"))),
        include_stop_string=source.random() < 0.5,
        skip_special_tokens=source.random() < 0.5,
        spaces_between_special_tokens=source.random() < 0.5,
    )
    return ids[: len(ids) // 4], ids[len(ids) // 4 :], options


def undisturbed(
    family: str, prompt: list[int], ids: list[int], options: GenerationOptions
) -> tuple[list[str], str | None]:
    """The text after each token and after the end, as a generated answer has it, and its stop string."""
    detokenizer = Detokenizer(
        tokenizer_of(family),
        prompt_ids=prompt,
        skip_special_tokens=options.skip_special_tokens,
        spaces_between_special_tokens=options.spaces_between_special_tokens,
    )
    stops, include = options.stop_strings, options.include_stop_string
    matcher = StopStringMatcher(stops, include_stop_string=include) if stops else None
    text = ChoiceText(detokenizer, matcher, len(prompt), min_tokens=options.stop.min_tokens)
    total, found = "", [""]
    for token_id in ids:
        if text.stop_string is None:
            total += text.push([token_id]).text
        found.append(total)
    if text.stop_string is None:
        total += text.end(FinishReason.LENGTH)[0]
    found.append(total)
    return found, text.stop_string


@pytest.mark.parametrize("family", sorted(TRAINED))
def test_a_replay_gives_exactly_the_rest(family: str) -> None:
    for seed in range(150):
        prompt, ids, options = random_case(family, seed)
        texts, stop_string = undisturbed(family, prompt, ids, options)
        source = random.Random(seed)
        cut = source.randint(0, len(ids))
        by_tokens = source.random() < 0.5
        known = texts[cut] if by_tokens else texts[-1][: source.randint(0, len(texts[cut]))]
        received = {"received_tokens": cut} if by_tokens else {"received_chars": len(known)}
        sequences = OpenSequences(tokenizer_of(family))
        sequences.begin(7, options, prompt_ids=prompt, **received)
        rest, matched, ended = "", None, False
        for chunk in (ids[:cut], *[[token_id] for token_id in ids[cut:]]):
            if not ended:
                text, matched, ended = sequences.push(7, chunk, end=False)
                rest += text
        if not ended:
            text, matched, ended = sequences.push(7, [], end=True)
            rest += text
        assert known + rest == texts[-1], (ids, cut, options)
        assert (matched, ended) == (stop_string, True)
        assert sequences.is_new(7)


@pytest.mark.parametrize(
    ("received", "says"),
    [
        ({"received_tokens": 9}, "received_tokens: 9: the sequence has 2"),
        ({"received_chars": 99}, "received_chars: 99"),
    ],
)
def test_more_than_there_is_cannot_have_been_received(received: dict[str, int], says: str) -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    sequences = OpenSequences(tokenizer)
    sequences.begin(1, GenerationOptions(), **received)
    ids = tokenizer.encode("The capital", add_special_tokens=False).token_ids[:2]
    assert sequences.push(1, ids, end=False) == ("", None, False)
    with pytest.raises(InvalidRequest, match=says):
        sequences.push(1, [], end=True)
    assert sequences.is_new(1)
