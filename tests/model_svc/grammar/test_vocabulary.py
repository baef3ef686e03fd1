import json
from collections.abc import Callable
from pathlib import Path

import pytest

from model_svc.grammar import vocabulary
from model_svc.grammar.library import new_matcher
from model_svc.grammar.source import grammar_of
from model_svc.grammar.vocabulary import load_vocabulary
from tests.fakes.tokenizers_trained import SPECIALS, TRAINED
from tests.model_svc.grammar.conftest import Trained
from tokenwire.constraints import choice
from tokenwire.errors import FailedPrecondition

TEXTS = [
    "Hello wörld, 日本 😀!",
    "def main():\n\treturn {'key': [1, 2]}",
    " leading",
    "The capital of France is Paris.",
]


@pytest.mark.parametrize("name", ["byte_level_bpe", "byte_fallback_bpe", "unigram"])
def test_the_bytes_of_tokens_are_the_text_that_the_tokenizer_makes_of_them(
    trained: Callable[[str], Trained], name: str
) -> None:
    tokenizer, known = trained(name)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        made = known.tokenizer.decode_bytes(ids).decode()
        expected = tokenizer.decode(ids)
        assert made.lstrip(" ") == expected.lstrip(" ") or "<unk>" in made, text
        if name == "byte_level_bpe":
            assert made == expected == text


@pytest.mark.parametrize("name", ["byte_level_bpe", "byte_fallback_bpe", "unigram"])
def test_special_tokens_are_no_text_and_ids_without_a_token_are_nothing(
    trained: Callable[[str], Trained], name: str
) -> None:
    tokenizer, known = trained(name)
    for special in SPECIALS:
        assert known.tokenizer.is_special_token(tokenizer.token_to_id(special))
    matcher = new_matcher(known, grammar_of(choice(*SPECIALS)))
    for special in SPECIALS:
        assert matcher.deep_copy().try_consume_tokens([tokenizer.token_to_id(special)]) == 0
    assert known.size == tokenizer.get_vocab_size() + 7
    bits = matcher.compute_bitmask()
    assert len(bits) == known.mask_bytes
    assert not any(bits[i >> 3] >> (i & 7) & 1 for i in range(tokenizer.get_vocab_size(), known.size))


def test_every_byte_can_be_said_by_byte_level_and_byte_fallback_vocabularies(
    trained: Callable[[str], Trained],
) -> None:
    for name in ("byte_level_bpe", "byte_fallback_bpe"):
        _, known = trained(name)
        texts = known.tokenizer
        single = {texts.decode_bytes([i]) for i in range(known.size) if not texts.is_special_token(i)}
        assert {bytes([byte]) for byte in range(0xF5)} <= single, name  # no text has a byte beyond


def test_added_tokens_that_are_not_special_are_text(tmp_path: Path) -> None:
    tokenizer = TRAINED["byte_level_bpe"]()
    tokenizer.add_tokens(["<think>", "   "])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = load_vocabulary(tmp_path, tokenizer.get_vocab_size())
    for text in ("<think>", "   "):
        token_id = tokenizer.token_to_id(text)
        assert known.tokenizer.decode_bytes([token_id]) == text.encode()
        assert not known.tokenizer.is_special_token(token_id)


def test_a_folder_without_a_tokenizer_or_with_one_that_joins_words_says_why_it_cannot_be_constrained(
    tmp_path: Path,
) -> None:
    with pytest.raises(FailedPrecondition, match=r"no tokenizer\.json") as caught:
        load_vocabulary(tmp_path, 10)
    assert caught.value.reason == "CONSTRAINTS_UNAVAILABLE"
    TRAINED["word_piece"]().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FailedPrecondition, match="WordPiece"):
        load_vocabulary(tmp_path, 400)
    for damaged in ("{", "{}", "[]", '{"model": {"vocab": 5}}', json.dumps({"model": {"vocab": {}}, "decoder": 7})):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(FailedPrecondition):
            load_vocabulary(tmp_path, 10)


def test_without_the_grammar_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TRAINED["byte_level_bpe"]().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(vocabulary, "HAS_LIBRARY", False)
    with pytest.raises(FailedPrecondition, match="llguidance.*pip install") as caught:
        load_vocabulary(tmp_path, 400)
    assert caught.value.reason == "CONSTRAINTS_UNAVAILABLE"


def test_logits_narrower_than_the_vocabulary_are_no_matter(tmp_path: Path) -> None:
    tokenizer = TRAINED["byte_level_bpe"]()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = load_vocabulary(tmp_path, 300)
    assert known.tokenizer.vocab_size == 301
    assert not new_matcher(known, grammar_of(choice("a"))).is_error()
