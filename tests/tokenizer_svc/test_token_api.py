"""Calls that only tokenize, detokenize or count, against a running tier."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import (
    LiveTokenizerTier,
    refusal,
    with_tier,
)
from tokenizer_svc import token_api
from tokenwire import token_calls
from tokenwire.errors import InvalidRequest, NotFound, TokenwireError
from tokenwire.v1 import tokenizer_pb2 as pb


def test_tokenize_and_detokenize_are_inverse(trained_folder: Path) -> None:
    texts = ["The capital of France", "", "naïve 日本語 😀", "long " * 2000]

    async def call(live: LiveTokenizerTier) -> None:
        answer = await live.stub.Tokenize(pb.TokenizeRequest(texts=texts))
        assert [list(e.token_ids) for e in answer.encodings] == [live.ids(text) for text in texts]
        assert not answer.encodings[0].starts
        assert answer.fingerprint.vocabulary == live.tokenizer.fingerprint
        sequences = [{"ids": e.token_ids} for e in answer.encodings]
        back = await live.stub.Detokenize(pb.DetokenizeRequest(model=trained_folder.name, sequences=sequences))
        assert list(back.texts) == texts

    with_tier(trained_folder, call)


def test_offsets_are_in_characters(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        text = "naïve café is"
        answer = await live.stub.Tokenize(pb.TokenizeRequest(texts=[text], return_offsets=True))
        found = answer.encodings[0]
        assert len(found.starts) == len(found.ends) == len(found.token_ids)
        assert text[found.starts[-1] : found.ends[-1]].strip() == "is"

    with_tier(trained_folder, call)


def test_special_tokens_are_skipped_unless_asked_for(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        ids = live.tokenizer.encode("<s>hello</s>", add_special_tokens=False).token_ids
        for skip, expected in ((None, "hello"), (True, "hello"), (False, "<s>hello</s>")):
            request = pb.DetokenizeRequest(sequences=[{"ids": ids}], skip_special_tokens=skip)
            assert list((await live.stub.Detokenize(request)).texts) == [expected]

    with_tier(trained_folder, call)


def test_tokens_are_counted_as_they_are_encoded(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        texts = ["The capital of France", "", "<s>"]
        conversation = pb.Conversation(messages=[{"role": "user", "content": "Hi<s>"}])
        answer = await live.stub.CountTokens(pb.CountTokensRequest(texts=texts, conversations=[conversation] * 2))
        rendered = "<|im_start|>user\nHi<s><|im_end|>\n<|im_start|>assistant\n"
        assert list(answer.texts) == [len(live.ids(text)) for text in texts]
        assert list(answer.conversations) == [len(live.ids(rendered))] * 2
        assert answer.max_context_tokens == 0, "no model tier has said how much"
        request = pb.CountTokensRequest(texts=texts, conversations=[conversation], split_special_tokens=True)
        split = await live.stub.CountTokens(request)
        assert split.texts[2] > answer.texts[2] and split.conversations[0] > answer.conversations[0]
        assert split.texts[0] == answer.texts[0]

    with_tier(trained_folder, call)


def test_special_tokens_in_texts_are_special_unless_they_are_split(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        special = live.tokenizer.backend.token_to_id("<|im_end|>")
        for split in (False, True):
            request = pb.TokenizeRequest(texts=["a<|im_end|>"], split_special_tokens=split)
            (found,) = (await live.stub.Tokenize(request)).encodings
            assert (special in found.token_ids) is not split
            conversation = pb.Conversation(messages=[{"role": "user", "content": "a<|im_end|>"}])
            answer = await live.stub.ApplyChatTemplate(
                pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=True, split_special_tokens=split)
            )
            assert list(answer.token_ids).count(special) == (1 if split else 2)
            assert live.tokenizer.decode(answer.token_ids, skip_special_tokens=False) == answer.text

    with_tier(trained_folder, call)


def test_texts_are_cut_where_that_is_asked_for(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        text = "The capital of France is Paris."
        ids = live.ids(text)
        for side, kept in ((0, ids[-3:]), (1, ids[-3:]), (2, ids[:3])):
            request = pb.TokenizeRequest(
                texts=[text, ""], truncation={"side": side, "max_tokens": 3}, return_offsets=True
            )
            found, empty = (await live.stub.Tokenize(request)).encodings
            assert (list(found.token_ids), found.num_truncated) == (kept, len(ids) - 3)
            assert len(found.starts) == len(found.ends) == 3 and not empty.num_truncated
        begun = live.ids("<s>" + text)
        (found,) = (
            await live.stub.Tokenize(pb.TokenizeRequest(texts=["<s>" + text], truncation={"max_tokens": 3}))
        ).encodings
        assert list(found.token_ids) == [begun[0], *begun[-2:]]

    with_tier(trained_folder, call)


@pytest.mark.parametrize(
    ("method", "request_", "kind", "word"),
    [
        ("Tokenize", pb.TokenizeRequest(), InvalidRequest, "texts"),
        ("Tokenize", pb.TokenizeRequest(model="other", texts=["a"]), NotFound, "other"),
        ("Detokenize", pb.DetokenizeRequest(), InvalidRequest, "sequences"),
        ("Detokenize", pb.DetokenizeRequest(sequences=[{"ids": [1]}, {"ids": [9999]}]), InvalidRequest, "[1].ids[0]"),
        ("ApplyChatTemplate", pb.ApplyChatTemplateRequest(), InvalidRequest, "conversation.messages"),
        ("CountTokens", pb.CountTokensRequest(), InvalidRequest, "texts"),
        ("CountTokens", pb.CountTokensRequest(model="other", texts=["a"]), NotFound, "other"),
        ("CountTokens", pb.CountTokensRequest(conversations=[{}]), InvalidRequest, "messages"),
        ("Tokenize", pb.TokenizeRequest(texts=["a"], truncation={}), InvalidRequest, "truncation.max_tokens"),
        ("Tokenize", pb.TokenizeRequest(texts=["a"], truncation={"side": 7, "max_tokens": 1}), InvalidRequest, "side"),
        ("Embed", pb.EmbedRequest(), InvalidRequest, "texts: 0 inputs"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused_by_name(
    trained_folder: Path, method: str, request_: Any, kind: type[TokenwireError], word: str
) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        error = await refusal(getattr(live.stub, method)(request_))
        assert type(error) is kind and word in error.message

    with_tier(trained_folder, call)


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Tokenize", pb.TokenizeRequest(texts=[""] * 1025), "texts"),
        ("Detokenize", pb.DetokenizeRequest(sequences=[{}] * 1025), "sequences"),
        ("CountTokens", pb.CountTokensRequest(texts=[""] * 1025), "texts"),
        ("CountTokens", pb.CountTokensRequest(texts=["a"], conversations=[{}] * 1024), "conversations"),
    ],
    ids=["tokenize", "detokenize", "count texts", "count conversations"],
)
def test_more_items_than_a_call_may_bring_are_refused_by_name(
    trained_folder: Path, method: str, request_: Any, field: str
) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        error = await refusal(getattr(live.stub, method)(request_))
        assert type(error) is InvalidRequest and error.violations[0].field == field
        assert "1025" in error.message and "1024" in error.message

    with_tier(trained_folder, call)


def test_a_thousand_items_are_answered(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        texts = ["", "a"] * 512
        ids = live.ids("a")
        encodings = (await live.stub.Tokenize(pb.TokenizeRequest(texts=texts, add_special_tokens=False))).encodings
        assert [list(each.token_ids) for each in encodings] == [[], ids] * 512
        sequences = [{"ids": each.token_ids} for each in encodings]
        assert list((await live.stub.Detokenize(pb.DetokenizeRequest(sequences=sequences))).texts) == texts
        counted = await live.stub.CountTokens(pb.CountTokensRequest(texts=texts, add_special_tokens=False))
        assert list(counted.texts) == [0, len(ids)] * 512

    with_tier(trained_folder, call)


def test_only_small_calls_are_decoded_on_the_event_loop(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences count as ids do: each is a call of the library, also where it is empty."""
    monkeypatch.setattr(token_api, "INLINE_IDS", 100)

    async def call(live: LiveTokenizerTier) -> None:
        loop_thread, threads = threading.get_ident(), list[bool]()
        decode = live.tokenizer.decode

        def noted(*args: Any, **options: Any) -> str:
            threads.append(threading.get_ident() == loop_thread)
            return decode(*args, **options)

        monkeypatch.setattr(live.tokenizer, "decode", noted)
        for sequences, inline in (
            ([{"ids": [1] * 99}], True),
            ([{"ids": [1] * 100}], False),
            ([{}] * 100, True),
            ([{}] * 101, False),
        ):
            threads.clear()
            await live.stub.Detokenize(pb.DetokenizeRequest(sequences=sequences))
            assert threads == [inline] * len(sequences)

    with_tier(trained_folder, call)


LARGE = "The capital of France is Paris. " * 4_000
"""More than one piece holds."""


def test_calls_of_the_token_api_hold_up_no_prompts_and_go_with_their_callers(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        begun, go_on, sizes = threading.Event(), threading.Event(), list[int]()
        thread = live.server.tier.token_thread
        count_batch = live.tokenizer.count_batch

        def slow(texts: Sequence[str], **options: Any) -> list[int]:
            sizes.append(len(texts))
            begun.set()
            assert go_on.wait(30)
            return count_batch(texts, **options)

        monkeypatch.setattr(live.tokenizer, "count_batch", slow)
        calls = [live.stub.CountTokens(pb.CountTokensRequest(texts=[LARGE, LARGE])) for _ in range(3)]
        try:
            while not begun.is_set():
                await asyncio.sleep(0.001)
            async with asyncio.timeout(20):
                assert (await live.stub.Tokenize(pb.TokenizeRequest(texts=["hi"]))).encodings
                await live.server.tier.encoder.encode(LARGE[:1000])
                await live.server.tier.embedding_thread.run(int)
                for each in calls:
                    each.cancel()
                while thread.num_queued:
                    await asyncio.sleep(0.001)
                after = live.stub.CountTokens(pb.CountTokensRequest(texts=[LARGE]))
                while not thread.num_queued:
                    await asyncio.sleep(0.001)
                go_on.set()
                assert list((await after).texts) == [len(live.ids(LARGE))]
        finally:
            go_on.set()
        assert sizes == [1, 1], "the piece that had begun, and that of the caller who stayed"

    with_tier(trained_folder, call)


def test_texts_that_are_too_large_are_refused_by_name(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_calls, "MAX_TEXT_CHARS", 10)

    async def call(live: LiveTokenizerTier) -> None:
        texts = ["x" * 10, "x" * 11]
        for awaitable in (
            live.stub.Tokenize(pb.TokenizeRequest(texts=texts)),
            live.stub.CountTokens(pb.CountTokensRequest(texts=texts)),
        ):
            error = await refusal(awaitable)
            assert isinstance(error, InvalidRequest) and error.violations[0].field == "texts[1]"
            assert "11 characters" in str(error) and "at most 10" in str(error)

    with_tier(trained_folder, call)
