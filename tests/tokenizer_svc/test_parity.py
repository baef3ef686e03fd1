"""Streamed text equals `decode` of the whole: every family, random tokens and real texts, whatever the chunks."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders

from tests.fakes.tokenizers_trained import TRAINED
from tokenizer_svc import detokenizer as module
from tokenizer_svc.detokenizer import MAX_HELD_TOKENS, Detokenizer, decode
from tokenizer_svc.tokenizer import Tokenizer

FAMILIES = sorted(TRAINED)
NUM_RANDOM = 1_250
"""Sequences per family: 5,000 in all."""
TEXTS = [
    "The quick brown fox. Ελλάδα, русский, 日本語, 한국어, العربية, עברית, ไทย, हिन्दी, 中文。",
    "😀👩‍👩‍👧🏳️‍🌈 e\u0301 ﷽ \u200b\u200d \ufeff ",
    "   leading,\ttabs\t\tand  \n\n\n   blank\r\nlines   ",
    "def f(x):\n    if x:\n\treturn {'a': [1, 2.5, None]}  # ½ → ∞\n\n\nclass A: ...\n",
    "<s>not special?</s> <|im_start|>user\n<unk>",
    " ",
    "\n",
    "▁ and ▁▁ and ## and <0x41>",
]  # fmt: skip


@cache
def tokenizer_of(family: str) -> Tokenizer:
    return Tokenizer(TRAINED[family](), fingerprint="", special_tokens={})


def in_chunks(tokenizer: Tokenizer, chunks: list[list[int]], skip: bool) -> str:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return "".join(detokenizer.push(chunk) for chunk in chunks) + detokenizer.flush()


def cut_at(ids: list[int], cuts: Any) -> list[list[int]]:
    places = [0, *cuts, len(ids)]
    return [ids[a:b] for a, b in zip(places, places[1:], strict=False)]


def random_ids(tokenizer: Tokenizer, source: random.Random) -> list[int]:
    """Any ids, with bytes, special tokens and repetitions more often than chance would have them."""
    special = sorted(tokenizer.special_ids)
    by_bytes = sorted(tokenizer.byte_of) or [source.randrange(tokenizer.vocab_size)]
    known = tokenizer.encode(source.choice(TEXTS), add_special_tokens=False).token_ids
    kinds = (
        lambda: [source.randrange(tokenizer.vocab_size)],
        lambda: [source.choice(special)] * source.choice((1, 1, 3)),
        lambda: [source.choice(by_bytes) for _ in range(source.randint(1, 5))],
        lambda: [source.randrange(tokenizer.vocab_size)] * source.randint(1, 6),
        lambda: known[source.randrange(len(known)) :][:6] if known else [],
        lambda: [tokenizer.vocab_size + source.randrange(9)],
    )
    ids: list[int] = []
    for _ in range(source.randint(1, 12)):
        ids += source.choices(kinds, (8, 2, 3, 1, 4, 0.3))[0]()
    return ids


def every_chunking(ids: list[int]) -> Iterator[list[list[int]]]:
    for size in range(len(ids)):
        for cuts in combinations(range(1, len(ids)), size):
            yield cut_at(ids, cuts)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_tokens_in_random_chunks(family: str, skip: bool) -> None:
    tokenizer = tokenizer_of(family)
    for seed in range(NUM_RANDOM // 2):
        source = random.Random(f"{family}{skip}{seed}")
        ids = random_ids(tokenizer, source)
        expected = tokenizer.decode(ids, skip_special_tokens=skip)
        assert in_chunks(tokenizer, [[i] for i in ids], skip) == expected, ids
        cuts = sorted(source.sample(range(len(ids) + 1), source.randint(0, min(4, len(ids)))))
        assert in_chunks(tokenizer, cut_at(ids, cuts), skip) == expected, (ids, cuts)


@pytest.mark.parametrize("family", FAMILIES)
def test_short_sequences_in_every_chunking(family: str) -> None:
    tokenizer = tokenizer_of(family)
    for seed in range(25):
        ids = random_ids(tokenizer, random.Random(seed))[:8]
        for skip in (True, False):
            expected = tokenizer.decode(ids, skip_special_tokens=skip)
            assert {in_chunks(tokenizer, chunks, skip) for chunks in every_chunking(ids)} == {expected}, ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_many_kinds(family: str, text: str) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False).token_ids
    source = random.Random(text)
    for skip in (True, False):
        expected = tokenizer.decode(ids, skip_special_tokens=skip)
        for _ in range(10):
            cuts = sorted(source.sample(range(len(ids) + 1), min(len(ids), source.randint(0, 9))))
            assert in_chunks(tokenizer, cut_at(ids, cuts), skip) == expected
        assert in_chunks(tokenizer, [[i] for i in ids], skip) == expected


@pytest.mark.model
def test_the_default_model_on_random_tokens(smollm2_folder: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_folder)
    for seed in range(500):
        source = random.Random(seed)
        ids = random_ids(tokenizer, source)
        skip = source.random() < 0.5
        expected = tokenizer.decode(ids, skip_special_tokens=skip)
        assert in_chunks(tokenizer, [[i] for i in ids], skip) == expected, ids


def test_long_runs_of_bytes_are_given_out_in_pieces() -> None:
    """Nobody waits for the end of a text in a script that the vocabulary lacks."""
    tokenizer = tokenizer_of("byte_fallback_bpe")
    text = "ไทยไม่มีในคำศัพท์ " * 20
    ids = tokenizer.encode(text, add_special_tokens=False).token_ids
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([i]) for i in ids]
    assert "".join(pieces) + detokenizer.flush() == text
    silent = max(len(run) for run in "".join("x" if piece else "." for piece in pieces).split("x"))
    assert silent <= module.MAX_RUN_TOKENS


def test_a_long_run_that_is_no_utf8_is_replaced_from_start_to_end() -> None:
    tokenizer = tokenizer_of("byte_fallback_bpe")
    byte = {value: token_id for token_id, value in tokenizer.byte_of.items()}
    ids = [byte[0xC3], byte[0xC3], *[byte[b] for b in "é".encode() * 100]]
    ids += tokenizer.encode("The capital", add_special_tokens=False).token_ids
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert in_chunks(tokenizer, [[i] for i in ids], True) == expected
    assert expected.startswith("\ufffd" * 202)


class CountingStream:
    """DecodeStream as the library describes it, which counts the tokens it decodes."""

    num_decoded = 0

    def __init__(self, ids: Any = None, skip_special_tokens: bool = False) -> None:
        self.real = decoders.DecodeStream(ids=ids, skip_special_tokens=skip_special_tokens)
        self.num_held = len(ids or ())

    def step(self, backend: Any, token_id: int) -> str | None:
        self.num_held += 1
        CountingStream.num_decoded += 2 * self.num_held
        text: str | None = self.real.step(backend, token_id)
        if text is not None:
            self.num_held = 1
        return text


@pytest.mark.parametrize("kind", ["text", "specials", "broken", "bytes", "outside"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_decoded_grow_with_the_output_and_not_with_its_square(
    family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(family)
    plain = tokenizer.encode("The capital of France", add_special_tokens=False).token_ids
    broken = tokenizer.backend.token_to_id("<0xE2>") or tokenizer.backend.token_to_id("â") or plain[0]
    ids = {
        "text": plain,
        "specials": [tokenizer.backend.token_to_id("</s>")],
        "broken": [broken],
        "bytes": sorted(tokenizer.byte_of)[0x41:0x5B] or plain,
        "outside": [tokenizer.vocab_size + 1],
    }[kind]
    real_decode = Tokenizer.decode

    def counting_decode(self: Tokenizer, token_ids: Any, *, skip_special_tokens: bool) -> str:
        CountingStream.num_decoded += len(token_ids)
        return real_decode(self, token_ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", counting_decode)
    monkeypatch.setattr(module, "DecodeStream", CountingStream)
    work = []
    for num_tokens in (1_000, 4_000):
        CountingStream.num_decoded = 0
        detokenizer = Detokenizer(tokenizer)
        for i in range(num_tokens):
            detokenizer.push([ids[i % len(ids)]])
        detokenizer.flush()
        work.append(CountingStream.num_decoded)
    assert work[1] <= 4.2 * work[0] + 10
    assert work[1] <= 4_000 * 2.5 * MAX_HELD_TOKENS


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_row_without_spaces(family: str) -> None:
    """As `decode`, but that a special token behind another one is its own text alone."""
    tokenizer = tokenizer_of(family)
    ids = tokenizer.encode("The capital of", add_special_tokens=False).token_ids
    start, end = (tokenizer.backend.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>"))
    sequence = [ids[0], end, start, end, *ids[1:], start, start]
    text = decode(tokenizer, sequence, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert "<|im_end|><|im_start|><|im_end|>" in text and text.endswith("<|im_start|><|im_start|>")
    whole = tokenizer.decode(sequence, skip_special_tokens=False)
    assert text.replace(" ", "") == whole.replace(" ", "")
    if family == "word_piece":
        assert "<|im_end|> <|im_start|>" in whole, "its decoder joins with spaces"
    for skip, spaces in ((True, False), (False, True)):
        given = decode(tokenizer, sequence, skip_special_tokens=skip, spaces_between_special_tokens=spaces)
        assert given == tokenizer.decode(sequence, skip_special_tokens=skip)
