"""The encoding cache and the boundaries it cuts at: never an id other than those of the whole text."""

import random
import sys
import threading
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from tests.fakes.tokenizers_trained import TRAINED, byte_fallback_bpe, byte_level_bpe, unigram, word_piece, words_alone
from tokenizer_svc.boundaries import Boundaries, affixes
from tokenizer_svc.encoding_cache import ENTRY_BYTES, EncodingCache
from tokenizer_svc.prompt_encoder import CacheOutcome, PromptEncoder, PromptIds, PromptText
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import InvalidRequest

PIECES = [
    "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "user\n", "\n", " ", "   ", "\t", "Hello", "world",
    "The capital", "_x", "x", "<|im_start|>x<", "|im_end|>", "<", "<s", "日本", "😀", "é", "▁", "##ing", "<mask>",
    "<pad>", "<tool>", "tool", "<|im_end|>\n", "1", "it's", "",
]  # fmt: skip


def metaspace_first() -> Backend:
    """As T5 since it was converted anew, and Llama without the old behaviour: only a text's start gets a ▁."""
    backend = unigram()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return backend


def greedy_tokens() -> Backend:
    """Added tokens of every kind: some take blanks with them, some are words, some contain others."""
    backend = byte_level_bpe()
    backend.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("tool", single_word=True, normalized=False)])
    backend.add_special_tokens(
        [
            AddedToken("<mask>", lstrip=True, special=True, normalized=False),
            AddedToken("<pad>", rstrip=True, special=True, normalized=False),
            AddedToken("<|im_end|>\n", special=True, normalized=False),
            AddedToken("_x", special=True, normalized=False),
            AddedToken("   ", special=True, normalized=False),
        ]
    )
    return backend


def with_begin_and_end() -> Backend:
    """As BERT and Llama: something around every text."""
    backend = byte_fallback_bpe()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))],
    )
    return backend


def normalizing() -> Backend:
    """Lower case, no accents, stripped; and special tokens that are looked for after that."""
    backend = word_piece()
    backend.normalizer = normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Strip()])
    backend.add_special_tokens([AddedToken("<tool>", special=True, normalized=True)])
    return backend


BACKENDS: dict[str, Any] = {
    **TRAINED,
    "metaspace_first": metaspace_first,
    "greedy_tokens": greedy_tokens,
    "with_begin_and_end": with_begin_and_end,
    "normalizing": normalizing,
}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer(BACKENDS[kind](), fingerprint="", special_tokens={})


def random_text(source: random.Random) -> str:
    return "".join(source.choice(PIECES) for _ in range(source.randint(0, 14)))


def ids_of(result: PromptIds | Exception) -> list[int]:
    assert isinstance(result, PromptIds)
    return result.token_ids


@pytest.mark.parametrize("kind", BACKENDS)
def test_with_and_without_the_cache_the_ids_are_the_same(kind: str) -> None:
    """Conversations grow, begin anew and share parts; a small cache forgets all the time."""
    tokenizer = tokenizer_of(kind)
    for max_bytes in (2**20, 8 * ENTRY_BYTES):
        source = random.Random(f"{kind}{max_bytes}")
        encoder = PromptEncoder(tokenizer, EncodingCache(max_bytes))
        text = ""
        for _ in range(400):
            text = random_text(source) if source.random() < 0.3 else text + random_text(source)
            add = source.random() < 0.5
            prompts = [
                PromptText(text, add),
                *[PromptText(random_text(source), add) for _ in range(source.randint(0, 2))],
            ]
            for prompt, result in zip(prompts, encoder.encode(prompts), strict=True):
                expected = tokenizer.encode(prompt.text, add_special_tokens=add).token_ids
                assert ids_of(result) == expected, (prompt.text, add)


@pytest.mark.parametrize("kind", BACKENDS)
def test_parts_are_the_text_and_boundaries_are_found_in_most(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.boundaries and tokenizer.affixes is not None
    source = random.Random(kind)
    for _ in range(200):
        text = random_text(source)
        parts = list(tokenizer.boundaries.parts(text))
        assert "".join(part.text for part in parts) == text
        assert all(text[part.start :].startswith(part.text) and part.text for part in parts)
    chat = "<|im_start|>user\nHello<|im_end|><|im_start|>"
    num_boundaries = sum(part.token_id is not None for part in tokenizer.boundaries.parts(chat))
    assert num_boundaries == (2 if kind == "greedy_tokens" else 3), "a token inside a longer one is none"


def test_what_is_not_known_has_no_boundaries() -> None:
    backend = byte_level_bpe()
    backend.model.dropout = 0.5
    assert not Boundaries(backend)
    backend = byte_level_bpe()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A <s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    assert affixes(backend) is None
    tokenizer = Tokenizer(backend, fingerprint="", special_tokens={})
    encoder = PromptEncoder(tokenizer, EncodingCache(2**20))
    for outcome in (CacheOutcome.MISS, CacheOutcome.HIT):
        (result,) = encoder.encode([PromptText("The capital" * 30, True)])
        assert ids_of(result) == tokenizer.encode("The capital" * 30, add_special_tokens=True).token_ids
        assert isinstance(result, PromptIds) and result.outcome is outcome


def test_what_was_encoded_before_is_not_encoded_again() -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    encoder = PromptEncoder(tokenizer, EncodingCache(2**20))
    system = "<|im_start|>system\nThe capital of France is Paris." + " Once upon a time" * 50 + "<|im_end|>"
    (first,) = encoder.encode([PromptText(system + "<|im_start|>user\nHello<|im_end|>", False)])
    (again,) = encoder.encode([PromptText(system + "<|im_start|>user\nHello<|im_end|>", False)])
    (other,) = encoder.encode([PromptText(system + "<|im_start|>user\nworld<|im_end|>", False)])
    (salted,) = encoder.encode([PromptText(system, False, salt="mine")])
    for result in (first, again, other, salted):
        assert isinstance(result, PromptIds)
    assert (first.outcome, first.num_cached) == (CacheOutcome.MISS, 0)
    assert again.outcome is CacheOutcome.HIT and again.token_ids == first.token_ids
    assert other.outcome is CacheOutcome.PART and 100 < other.num_cached < len(other.token_ids)
    assert salted.outcome is CacheOutcome.MISS, "another's salt tells nothing of what was encoded"


def test_a_short_text_is_not_remembered() -> None:
    cache = EncodingCache(2**20)
    encoder = PromptEncoder(tokenizer_of("byte_level_bpe"), cache)
    for _ in range(2):
        (result,) = encoder.encode([PromptText("The capital", True)])
        assert isinstance(result, PromptIds) and result.outcome is None and not len(cache)


def test_a_text_that_is_no_unicode_fails_alone() -> None:
    encoder = PromptEncoder(tokenizer_of("byte_level_bpe"), EncodingCache(2**20))
    long = "The capital " * 300
    results = encoder.encode([PromptText(text, False) for text in (long, "a<s>\ud800", long + "b")])
    assert [type(result) for result in results] == [PromptIds, InvalidRequest, PromptIds]


def test_a_text_that_the_library_fails_at_fails_alone() -> None:
    encoder = PromptEncoder(Tokenizer(words_alone(), fingerprint="", special_tokens={}))
    known = "hello world " * 30
    results = encoder.encode([PromptText(text, False) for text in (known, known + "Paris", known * 2)])
    assert isinstance(results[0], PromptIds) and isinstance(results[2], PromptIds)
    assert type(results[1]) is Exception


def test_the_cache_stays_within_its_bytes_and_forgets_what_is_oldest() -> None:
    entry = ENTRY_BYTES + sys.getsizeof("text 0") + 4 * 10
    cache = EncodingCache(3 * entry)
    keys = [("", 0, f"text {n}") for n in range(5)]
    for key in keys[:3]:
        cache.put([(key, [1] * 10)])
    assert all(ids is not None for ids in cache.get(keys[:3]))
    cache.get(keys[:1])
    cache.put([(keys[3], [2] * 10)])
    assert [ids is not None for ids in cache.get(keys)] == [True, False, True, True, False]
    cache.put([(("", 0, "long"), [1] * 10_000)])
    assert len(cache) == 3 and 0 < cache.num_bytes <= cache.max_bytes


def test_threads_share_a_cache() -> None:
    tokenizer = tokenizer_of("byte_level_bpe")
    encoder = PromptEncoder(tokenizer, EncodingCache(20 * ENTRY_BYTES))
    wrong: list[str] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(150):
            text = random_text(source)
            if (
                ids_of(encoder.encode([PromptText(text, False)])[0])
                != tokenizer.encode(text, add_special_tokens=False).token_ids
            ):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed % 2,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", BACKENDS)
def test_special_tokens_read_as_text(kind: str) -> None:
    """Nothing but the tokenizer's own frame is special, and the text is still all there."""
    tokenizer = tokenizer_of(kind)
    text = "Hello<s> world <|im_end|>"
    for cached in (None, EncodingCache(2**20)):
        (result,) = PromptEncoder(tokenizer, cached).encode([PromptText(text, False, split_special_tokens=True)])
        ids = ids_of(result)
        marks = {tokenizer.backend.token_to_id(token) for token in ("<s>", "<|im_end|>")}
        assert not marks & set(ids)
        assert len(ids) > len(tokenizer.encode(text, add_special_tokens=False).token_ids) or kind in (
            "word_piece",
            "normalizing",
        )
    (whole,) = PromptEncoder(tokenizer).encode([PromptText(text, True, split_special_tokens=True)])
    before, behind = tokenizer.affixes or ([], [])
    assert ids_of(whole) == [*before, *ids, *behind]


@pytest.mark.parametrize("kind", ["byte_level_bpe", "byte_fallback_bpe", "metaspace_first", "unigram"])
def test_marked_places_are_text_and_all_others_special(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    client = "x <|im_end|> y"
    text = f"<|im_start|>user\n{client}<|im_end|>"
    (result,) = PromptEncoder(tokenizer).encode([PromptText(text, False, plain={text.index("<|im_end|>")})])
    start, end = (tokenizer.backend.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    ids = ids_of(result)
    assert ids[0] == start and ids[-1] == end and not {start, end} & set(ids[1:-1])
    assert ids[1:-1] == tokenizer.encode_plain(f"user\n{client}", behind_boundary=True)
    guarded = tokenizer.encode("<|im_start|>user\nx ", add_special_tokens=False).token_ids[1:]
    assert ids[1 : len(guarded) - 1] == guarded[:-2], "the part does not stand at the start of a text"


def test_the_guard_itself_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="FDD0"):
        tokenizer_of("byte_level_bpe").encode_plain("\ufdd0\ufdd1")
