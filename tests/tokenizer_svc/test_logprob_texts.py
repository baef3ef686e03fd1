import json
from bisect import bisect_right
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.logprobs import logprob_of, logprobs_of
from tests.fakes.tokenizers_trained import TRAINED
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.least_tokens import byte_alphabet
from tokenizer_svc.logprob_texts import LogprobTexts
from tokenizer_svc.tokenizer import Tokenizer

ALPHABET = {byte: char for char, byte in byte_alphabet().items()}


@cache
def tokenizer_of(family: str) -> Tokenizer:
    return Tokenizer(TRAINED[family](), fingerprint="", special_tokens={})


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.backend.encode(text, add_special_tokens=False).tokens)


def positions(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[int]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    found = []
    for token_id in ids:
        found.append(detokenizer.position_of(token_id))
        detokenizer.push((token_id,))
    return found


@pytest.mark.parametrize("family", sorted(TRAINED))
def test_tokens_of_whole_characters_begin_where_the_text_before_them_ends(family: str) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode("The capital of France is Paris.", add_special_tokens=False).token_ids
    expected = [len(tokenizer.decode(ids[:n], skip_special_tokens=True)) for n in range(len(ids))]
    assert positions(tokenizer, ids) == expected


@pytest.mark.parametrize("family", ["byte_level_bpe", "byte_fallback_bpe"])
def test_the_bytes_of_a_character_begin_where_it_begins(family: str) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode("a🦊🦊b", add_special_tokens=False).token_ids
    found = positions(tokenizer, ids)
    begin, num_tokens = found.index(1), found.count(1)
    assert num_tokens >= 3 and found[begin:] == [1] * num_tokens + [2] * num_tokens + [3]


def test_a_character_that_begins_within_a_token_begins_behind_the_whole_ones_of_it() -> None:
    document = json.loads(TRAINED["byte_level_bpe"]().to_str())
    vocab = document["model"]["vocab"]
    vocab["xð"] = len(vocab)  # an x and the fox's first byte
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(document)), fingerprint="", special_tokens={})
    ids = [vocab[token] for token in ("a", "xð", "Ł", "¦", "Ĭ", "b")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ax🦊b"
    assert positions(tokenizer, ids) == [0, 1, 2, 2, 2, 3]


def beginnings(content: bytes) -> list[int]:
    """Where each character of the text of these bytes begins, in bytes; what is no UTF-8 is U+FFFD."""
    found, place = list[int](), 0
    while place < len(content):
        try:
            whole, end = content[place:].decode(), len(content)
        except UnicodeDecodeError as error:
            whole, end = content[place : place + error.start].decode(), place + error.end
        for char in whole:
            found.append(place)
            place += len(char.encode())
        if place < end:
            found.append(place)
            place = end
    return found


@settings(max_examples=300, deadline=None)
@given(
    contents=st.lists(
        st.sampled_from(
            ["a", " b", "é", "\ufffd", "🦊", *(bytes((byte,)) for byte in b"\xf0\x9f\xa6\x8a\xff\xc3\xed\xe0")]
        ),
        max_size=30,
    )
)
def test_bytes_that_are_no_text_have_their_places(contents: list[str | bytes]) -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    ids, offsets, whole = list[int](), list[int](), b""
    for content in contents:
        text = content if isinstance(content, str) else None
        tokens = [ALPHABET[byte] for byte in content] if text is None else tokens_of(tokenizer, text)
        for token in tokens:
            ids.append(tokenizer.backend.token_to_id(token))
            offsets.append(len(whole))
            whole += bytes(byte_alphabet()[char] for char in token)
    places = beginnings(whole)
    assert len(places) == len(tokenizer.decode(ids, skip_special_tokens=True))
    assert positions(tokenizer, ids) == [bisect_right(places, offset) - 1 for offset in offsets]


def test_behind_bytes_of_byte_fallback_that_are_no_text_each_has_its_place() -> None:
    tokenizer = tokenizer_of("byte_fallback_bpe")
    a = tokenizer.encode("a", add_special_tokens=False).token_ids[-1]
    byte = {value: token_id for token_id, value in tokenizer.byte_of.items()}
    ids = [a, byte[0xF0], byte[0x9F], a, byte[0xFF], byte[0xFF], a]
    assert len(tokenizer.decode(ids, skip_special_tokens=True)) == len("a?? a?? a")
    assert positions(tokenizer, ids) == [0, 1, 1, 3, 5, 6, 7]


def test_skipped_special_tokens_take_no_place() -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    special = tokenizer.backend.token_to_id("<|im_end|>")
    (a,) = tokenizer.encode("a", add_special_tokens=False).token_ids
    assert positions(tokenizer, [a, special, a, a]) == [0, 1, 1, 2]
    assert positions(tokenizer, [a, special, a, a], skip=False) == [0, 1, 11, 12]


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab é日😀🦊 ", max_size=20), family=st.sampled_from(["byte_level_bpe", "byte_fallback_bpe"]))
def test_places_never_go_back_nor_past_the_text(text: str, family: str) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False).token_ids
    found = positions(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert found == sorted(found) and all(place < max(1, len(whole)) for place in found)


@pytest.mark.parametrize("family", sorted(TRAINED))
def test_a_tokens_own_text_is_what_it_adds_behind_another(family: str) -> None:
    """Also with decoders that drop a text's leading space: the words do not run together."""
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode("The capital of France", add_special_tokens=False).token_ids
    assert "".join(map(tokenizer.token_text, ids)).lstrip() == "The capital of France"
    assert tokenizer.token_text(tokenizer.backend.token_to_id("</s>")).strip() == "</s>"
    assert tokenizer.token_text(tokenizer.vocab_size + 7) == ""


def test_output_and_prompt_get_their_texts() -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    ids = [tokenizer.backend.token_to_id("<s>"), *tokenizer.encode("The 🦊!", add_special_tokens=False).token_ids]
    texts = LogprobTexts(tokenizer, ids, every_token=True)
    found = texts.of_output(logprob_of(ids[1], 3), 12)
    assert (found.token_id, found.logprob, found.text_offset) == (ids[1], logprob_of(ids[1], 3).logprob, 12)
    assert found.text == tokenizer.token_text(ids[1]) != ""
    assert [(t.token_id, t.text) for t in found.top] == [
        (ids[1] + i, tokenizer.token_text(ids[1] + i)) for i in range(3)
    ]
    halves = texts.of_prompt(logprobs_of(ids[1:3], 0)) + texts.of_prompt(logprobs_of(ids[3:], 0))
    assert [t.token_id for t in halves] == ids[1:]
    assert [t.text_offset for t in halves] == positions(tokenizer, ids, skip=False)[1:]
    assert halves[0].text_offset == len("<s>") and halves[-1].text_offset == len("<s>The 🦊")
