from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.tokenizers_trained import TRAINED
from tokenizer_svc.detokenizer import MAX_HELD_TOKENS, Detokenizer
from tokenizer_svc.tokenizer import Tokenizer

FAMILIES = sorted(TRAINED)
TEXTS = [
    "The capital of France is Paris.",
    " leading and trailing ",
    "Größe, naïve café, Ελλάδα, русский, 日本語, 한국어, 😀👩‍👩‍👧!",
    "def main():\n    return {'key': [1, 2, 3]}\n\n\tprint(\"done\")",
    "isn't it, they've don't . , ?",
    "\ufffd in the text \ufffd",
]


@cache
def tokenizer_of(family: str) -> Tokenizer:
    return Tokenizer(TRAINED[family](), fingerprint="", special_tokens={})


def streamed(tokenizer: Tokenizer, ids: list[int], *, prompt: list[int] | None = None, skip: bool = True) -> str:
    detokenizer = Detokenizer(tokenizer, prompt_ids=prompt or [], skip_special_tokens=skip)
    return "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.flush()


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_text_equals_decode(family: str, text: str, skip: bool) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False).token_ids
    assert streamed(tokenizer, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_continues_the_prompt(family: str) -> None:
    """Cut a text's tokens anywhere: prompt and streamed output together are the text."""
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode("The capital of France is Paris, a city.", add_special_tokens=False).token_ids
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    for cut in range(1, len(ids)):
        before = tokenizer.decode(ids[:cut], skip_special_tokens=True)
        assert before + streamed(tokenizer, ids[cut:], prompt=ids[:cut]) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_special_token_the_output_is_decoded_alone(family: str) -> None:
    tokenizer = tokenizer_of(family)
    prompt = tokenizer.encode("hello", add_special_tokens=False).token_ids
    prompt += [tokenizer.backend.token_to_id("<s>")] * 6
    ids = tokenizer.encode("The capital", add_special_tokens=False).token_ids
    assert streamed(tokenizer, ids, prompt=prompt) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_random_ids_of_a_byte_level_vocabulary_equal_decode(data: st.DataObject, skip: bool) -> None:
    """Any ids at all, broken UTF-8 and special tokens among them."""
    tokenizer = tokenizer_of("byte_level_bpe")
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert streamed(tokenizer, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), skip=st.booleans(), family=st.sampled_from(FAMILIES))
def test_tokens_that_are_whole_texts_need_not_be_pushed(data: st.DataObject, skip: bool, family: str) -> None:
    tokenizer = tokenizer_of(family)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    text = ""
    for token_id in ids:
        whole = detokenizer.whole_texts
        text += (whole[token_id] if token_id < len(whole) else "") or detokenizer.push([token_id])
    assert text + detokenizer.flush() == streamed(tokenizer, ids, skip=skip)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30), family=st.sampled_from(FAMILIES), chunk=st.integers(1, 5))
def test_any_text_in_any_family_equals_decode(text: str, family: str, chunk: int) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False).token_ids
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.push(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    assert "".join(parts) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=True)


def test_incomplete_characters_are_held_back() -> None:
    tokenizer = tokenizer_of("byte_fallback_bpe")
    euro = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    after = tokenizer.encode("The", add_special_tokens=False).token_ids[-1]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token_id]) for token_id in euro] == ["", "", ""], "more bytes could spoil them"
    assert detokenizer.push([after]).startswith("€")
    assert detokenizer.push(euro[:2]) == ""
    assert set(detokenizer.flush()) == {"\ufffd"}
    assert detokenizer.flush() == ""


def test_a_run_of_bytes_is_judged_as_a_whole() -> None:
    """As ByteFallback does: the é is none, for the byte behind it is no UTF-8."""
    tokenizer = tokenizer_of("byte_fallback_bpe")
    byte = tokenizer.backend.token_to_id
    ids = [byte("<0xC3>"), byte("<0xA9>"), byte("<0xC3>")]
    ids += tokenizer.encode("The capital", add_special_tokens=False).token_ids
    text = streamed(tokenizer, ids)
    assert text == tokenizer.decode(ids, skip_special_tokens=True) == "\ufffd" * 3 + " The capital"


@pytest.mark.parametrize("family", ["byte_level_bpe", "byte_fallback_bpe"])
def test_endless_broken_bytes_are_given_out_in_bounded_pieces(family: str) -> None:
    tokenizer = tokenizer_of(family)
    broken = tokenizer.backend.token_to_id("â" if family == "byte_level_bpe" else "<0xE2>")
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([broken]) for _ in range(1000)]
    assert max(map(len, pieces)) <= MAX_HELD_TOKENS
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode([broken] * 1000, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_skipped_special_tokens_keep_the_place(family: str) -> None:
    tokenizer = tokenizer_of(family)
    special = tokenizer.backend.token_to_id("</s>")
    ids = tokenizer.encode("The capital of", add_special_tokens=False).token_ids
    ids = ids[:2] + [special] * 500 + ids[2:]
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_ids_outside_the_vocabulary_are_no_text() -> None:
    """A model may have more rows than its tokenizer has tokens."""
    tokenizer = tokenizer_of("byte_level_bpe")
    ids = tokenizer.encode("The capital", add_special_tokens=False).token_ids
    assert streamed(tokenizer, [ids[0], tokenizer.vocab_size + 7, *ids[1:]]) == "The capital"


def test_a_prompt_that_ends_inside_a_character_is_not_repeated() -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    prompt = [tokenizer.backend.token_to_id("a"), tokenizer.backend.token_to_id("â")]
    ids = tokenizer.encode("The", add_special_tokens=False).token_ids
    assert streamed(tokenizer, ids, prompt=prompt) == "The"


def test_byte_level_tokens_of_whole_characters_have_texts_of_their_own() -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    assert tokenizer.own_texts is not None and len(tokenizer.own_texts) == tokenizer.vocab_size
    assert tokenizer.own_texts[tokenizer.backend.token_to_id("<s>")] == "<s>"
    for token_id, text in enumerate(tokenizer.own_texts):
        whole = tokenizer.decode([token_id], skip_special_tokens=False)
        assert text == ("" if "\ufffd" in whole else whole)
    others = [tokenizer_of(family) for family in FAMILIES if family != "byte_level_bpe"]
    assert others and all(other.own_texts is None for other in others)
