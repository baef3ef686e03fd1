import random

import pytest

from model_svc.vllm_engine.stop_texts import StopTexts
from tests.fakes.tokenizers_trained import TRAINED, byte_level_bpe

TEXTS = [
    "The capital of France is Paris. The capital of Japan is Tokyo.",
    "Größe, naïve café, русский, 日本語, 😀 emoji.",
    "aaaaaaaaab aaaab ab",
]


def matched(stop_texts: StopTexts, ids: list[int]) -> tuple[str, int] | None:
    """What matched, and at which token."""
    for number, token_id in enumerate(ids, 1):
        if (found := stop_texts.push(token_id)) is not None:
            return found, number
    return None


@pytest.mark.parametrize("family", TRAINED)
def test_a_match_comes_with_the_token_that_completes_it(family: str) -> None:
    """Against decoding everything anew after each token, for random strings of the text."""
    tokenizer = TRAINED[family]()
    rng = random.Random(3)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids)
        if not decoded or "\N{REPLACEMENT CHARACTER}" in decoded:
            continue
        for _ in range(40):
            begin = rng.randrange(len(decoded))
            strings = [decoded[begin : begin + rng.randint(1, 6)], "never there"]
            expected = next(n for n in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:n]) for s in strings))
            found = matched(StopTexts(tokenizer, strings), ids)
            assert found is not None and found[0] == strings[0]
            assert found[1] == expected, (text, strings)


def test_the_one_that_begins_first_is_named() -> None:
    tokenizer = byte_level_bpe()
    ids = tokenizer.encode("The capital of France", add_special_tokens=False).ids
    assert matched(StopTexts(tokenizer, ["pital", "capital"]), ids) == matched(StopTexts(tokenizer, ["capital"]), ids)


def test_nothing_is_looked_for_before_min_tokens() -> None:
    tokenizer = byte_level_bpe()
    ids = tokenizer.encode("a b a b a b", add_special_tokens=False).ids
    everywhere = matched(StopTexts(tokenizer, ["b"]), ids)
    later = matched(StopTexts(tokenizer, ["b"], min_tokens=everywhere[1] if everywhere else 0), ids)
    assert everywhere is not None and later is not None and later[1] > everywhere[1]
    assert matched(StopTexts(tokenizer, ["b"], min_tokens=len(ids)), ids) is None


def test_special_tokens_are_text_only_when_they_are_not_skipped() -> None:
    tokenizer = byte_level_bpe()
    end = tokenizer.token_to_id("<|im_end|>")
    assert matched(StopTexts(tokenizer, ["<|im_end|>"]), [end]) is None
    assert matched(StopTexts(tokenizer, ["<|im_end|>"], skip_special_tokens=False), [end]) == ("<|im_end|>", 1)


def test_random_tokens_do_not_break_it() -> None:
    rng = random.Random(5)
    for make in TRAINED.values():
        tokenizer = make()
        stop_texts = StopTexts(tokenizer, ["never there"])
        for _ in range(2000):
            assert stop_texts.push(rng.randrange(tokenizer.get_vocab_size() + 10)) is None
