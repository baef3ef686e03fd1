from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from tests.fakes.tokenizers_trained import CORPUS, byte_fallback_bpe, byte_level_bpe, unigram, word_piece
from tokenizer_svc.least_tokens import LeastTokens

TEXTS = [
    *CORPUS[:4],
    "",
    "a",
    "é" * 9,
    "e\u0301" * 50,
    ">\u0338" * 20,
    "\ud55c\uae00" * 9,
    "𐍈" * 30,
    " " * 300,
    "<s>" * 40,
]

Change = Callable[[tokenizers.Tokenizer], None]


def longest_token_alone(tokenizer: tokenizers.Tokenizer) -> str:
    """A text in which every token is as long as any: the bound is met."""
    longest = max(tokenizer.get_vocab(with_added_tokens=False), key=len)
    found: str = tokenizer.decode([tokenizer.token_to_id(longest)], skip_special_tokens=False)
    return found


def normalized(normalizer: normalizers.Normalizer) -> Change:
    def change(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.normalizer = normalizer

    return change


def split(tokenizer: tokenizers.Tokenizer) -> None:
    """As Llama 3 and Qwen."""
    parts = [
        pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}|\s+|."), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)


def without_some_bytes(tokenizer: tokenizers.Tokenizer) -> None:
    """As SmolLM2, which never saw some control characters: they become nothing."""
    dropped = {"\u0103", "\u0104", "b"}  # bytes 3 and 4, and a letter
    kept = [char for char in sorted(pre_tokenizers.ByteLevel.alphabet()) if char not in dropped]
    vocabulary = {piece: i for i, piece in enumerate([*kept, "aa", "aaaa"])}
    tokenizer.model = models.BPE(vocabulary, [("a", "a"), ("aa", "aa")])


def surrounded(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


BOUNDED: list[Change] = [
    lambda tokenizer: None,
    split,
    without_some_bytes,
    surrounded,
    normalized(normalizers.NFC()),
    normalized(normalizers.NFKC()),
    normalized(normalizers.Sequence([normalizers.NFD(), normalizers.NFC()])),
    lambda tokenizer: tokenizer.add_tokens([AddedToken("a very long added token " * 3)]),
]


@pytest.mark.parametrize("change", BOUNDED)
def test_no_text_has_fewer_tokens_than_it_is_said_to_have_at_least(change: Change) -> None:
    tokenizer = byte_level_bpe()
    change(tokenizer)
    least = LeastTokens(tokenizer)
    assert least.longest_bytes
    for text in (*TEXTS, "\x03\x04" * 50 + "ab" * 50, longest_token_alone(tokenizer), "a very long added token " * 30):
        number = len(tokenizer.encode(text, add_special_tokens=False).ids)
        for most in range(number):
            found = least.beyond(text, most)
            assert found == 0 or most < found <= number
        assert least.beyond(text, number) == 0
    assert least.beyond("a" * 10_000, 10) == -(-10_000 // least.longest_bytes), "it does tell something"


def test_a_text_of_nothing_but_longest_tokens_is_judged_to_the_token() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([AddedToken("<this is the longest of them all>", normalized=False)])
    text = "<this is the longest of them all>" * 20
    least = LeastTokens(tokenizer)
    assert len(tokenizer.encode(text).ids) == 20
    assert (least.beyond(text, 19), least.beyond(text, 20)) == (20, 0)
    assert (least.beyond(text + "a", 20), len(tokenizer.encode(text + "a").ids)) == (21, 21)


def removing(tokenizer: tokenizers.Tokenizer) -> None:
    parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)


def composing_to_dropped_bytes(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    kept = [char for char in sorted(pre_tokenizers.ByteLevel.alphabet()) if char != "\xc3"]
    tokenizer.model = models.BPE({char: i for i, char in enumerate(kept)}, [])


UNBOUNDED: list[Change] = [
    composing_to_dropped_bytes,
    removing,
    normalized(normalizers.Replace("aa", "a")),
    normalized(normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
    lambda tokenizer: tokenizer.add_tokens([AddedToken("<blank>", rstrip=True)]),
    lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()),
]


@pytest.mark.parametrize("change", UNBOUNDED)
def test_nothing_is_said_of_tokenizers_that_may_drop_something(change: Change) -> None:
    tokenizer = byte_level_bpe()
    change(tokenizer)
    assert LeastTokens(tokenizer).beyond("a" * 1_000_000, 1) == 0


@pytest.mark.parametrize("family", [byte_fallback_bpe, unigram, word_piece])
def test_nothing_is_said_of_other_families(family: Callable[[], tokenizers.Tokenizer]) -> None:
    assert LeastTokens(family()).beyond("a" * 1_000_000, 1) == 0
