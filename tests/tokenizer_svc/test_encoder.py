import asyncio
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes.tokenizers_trained import words_alone
from tokenizer_svc import encoder as encoder_module
from tokenizer_svc.chat_template import ChatMessage, Conversation, load_chat_template
from tokenizer_svc.encoder import (
    INLINE_CHARS,
    INLINE_CONVERSATION_CHARS,
    LARGE_CHARS,
    MAX_BATCH_CHARS,
    EncodedPrompt,
    Encoder,
)
from tokenizer_svc.encoding_cache import EncodingCache, Key
from tokenizer_svc.prompt_encoder import CacheOutcome
from tokenizer_svc.tokenizer import Encoding, Tokenizer
from tokenwire import token_calls
from tokenwire.errors import FailedPrecondition, Internal, InvalidRequest, Overloaded

LONG = "The capital of France is Paris. " * 20


class RecordingTokenizer(Tokenizer):
    """The real one, which notes how it is called and can be made to wait."""

    def __init__(self, real: Tokenizer) -> None:
        super().__init__(real.backend, fingerprint=real.fingerprint, special_tokens=real.special_tokens)
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, text: str, *, add_special_tokens: bool, offsets: bool = False) -> Encoding:
        self._note(1)
        return super().encode(text, add_special_tokens=add_special_tokens, offsets=offsets)

    def encode_batch(self, texts: Sequence[str], **options: Any) -> list[Encoding]:
        self._note(len(texts))
        return super().encode_batch(texts, **options)

    def _note(self, size: int) -> None:
        self.batches.append(size)
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(10)


@pytest.fixture
def tokenizer(trained_folder: Path) -> RecordingTokenizer:
    return RecordingTokenizer(Tokenizer.load(trained_folder))


def encoder_of(tokenizer: Tokenizer, folder: Path | None = None, **options: Any) -> Encoder:
    template = load_chat_template(folder, tokenizer.special_tokens) if folder else None
    return Encoder(tokenizer, template, "tiny", **options)


async def held_up(encoder: Encoder, tokenizer: RecordingTokenizer) -> "asyncio.Future[EncodedPrompt]":
    """A prompt in a thread, which waits until the tokenizer's gate is opened."""
    tokenizer.gate.clear()
    running = asyncio.ensure_future(encoder.encode(LONG))
    while not tokenizer.batches:
        await asyncio.sleep(0.001)
    return running


def test_short_texts_stay_on_the_loop_and_long_ones_do_not(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer)
        short = await encoder.encode("x" * INLINE_CHARS)
        assert tokenizer.threads == {threading.current_thread().name}
        tokenizer.threads.clear()
        long = await encoder.encode(LONG)
        assert all(name.startswith("encode") for name in tokenizer.threads)
        for text, found in (("x" * INLINE_CHARS, short), (LONG, long)):
            assert found.text == text
            assert tokenizer.decode(found.token_ids, skip_special_tokens=True) == text
        encoder.close()

    asyncio.run(main())


def test_prompts_that_arrive_together_share_a_batch(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, max_batch_size=4, num_threads=1)
        found = await asyncio.gather(*(encoder.encode(f"{n} {LONG}") for n in range(10)))
        assert [prompt.text for prompt in found] == [f"{n} {LONG}" for n in range(10)]
        assert tokenizer.batches == [4, 4, 2]
        encoder.close()

    asyncio.run(main())


def test_equal_prompts_of_a_batch_are_encoded_once(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer)
        found = await asyncio.gather(*(encoder.encode(LONG) for _ in range(3)))
        assert tokenizer.batches == [1]
        assert [tokenizer.decode(prompt.token_ids, skip_special_tokens=True) for prompt in found] == [LONG] * 3
        encoder.close()

    asyncio.run(main())


def test_a_window_waits_for_others(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, window_s=60, max_batch_size=2)
        first = asyncio.ensure_future(encoder.encode(LONG))
        await asyncio.sleep(0.01)
        assert not tokenizer.batches
        await asyncio.gather(first, encoder.encode(f"another {LONG}"))
        assert tokenizer.batches == [2]
        encoder.close()
        encoder = encoder_of(tokenizer, window_s=0.001)
        await encoder.encode(LONG)
        assert tokenizer.batches == [2, 1], "the window is over, nobody else came"
        encoder.close()

    asyncio.run(main())


def test_a_book_does_not_hold_up_a_batch(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, num_threads=1)
        await asyncio.gather(
            *(encoder.encode(text) for text in (LONG, "b" * (MAX_BATCH_CHARS + 1), f"c {LONG}", f"d {LONG}"))
        )
        assert tokenizer.batches == [1, 1, 2]
        encoder.close()

    asyncio.run(main())


def test_an_item_that_fails_fails_alone(tokenizer: RecordingTokenizer, trained_folder: Path) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, trained_folder)
        chat = Conversation((ChatMessage("user", LONG),))
        empty = Conversation((), documents=({}, {}, {}))
        found = await asyncio.gather(
            *(encoder.encode(source) for source in (LONG, LONG + "\ud800", chat, empty, LONG)), return_exceptions=True
        )
        assert [type(result).__name__ for result in found] == [
            "EncodedPrompt", "InvalidRequest", "EncodedPrompt", "InvalidRequest", "EncodedPrompt",
        ]  # fmt: skip
        with pytest.raises(InvalidRequest):
            await encoder.encode("\ud800")
        encoder.close()

    asyncio.run(main())


@pytest.mark.parametrize("num_words", [24, 60], ids=["on the loop", "in a thread"])
def test_a_text_that_the_library_fails_at_fails_alone(num_words: int) -> None:
    async def main() -> None:
        encoder = encoder_of(Tokenizer(words_alone(), fingerprint="", special_tokens={}))
        texts = ["hello world" + " hello" * num_words + " world" * number for number in range(8)]
        texts[3] = texts[3].replace("hello", "Paris")
        async with asyncio.timeout(10):
            found = await asyncio.gather(*map(encoder.encode, texts), return_exceptions=True)
        assert [type(result).__name__ for result in found] == [
            "Exception" if index == 3 else "EncodedPrompt" for index in range(8)
        ]
        encoder.close()

    asyncio.run(main())


class BrokenCache(EncodingCache):
    """Has a bug."""

    def get(self, keys: Sequence[Key]) -> list["array[int] | None"]:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("num_texts", [1, 30])
def test_a_bug_ends_everybodys_wait(tokenizer: RecordingTokenizer, num_texts: int) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, cache=BrokenCache(2**20))
        async with asyncio.timeout(10):
            texts = [text for number in range(num_texts) for text in (f"{number}", f"{number} {LONG}")]
            found = await asyncio.gather(*map(encoder.encode, texts), return_exceptions=True)
        assert all(isinstance(result, RuntimeError) for result in found)
        encoder.close()

    asyncio.run(main())


class PanicException(BaseException):  # noqa: N818  as pyo3 names it
    """What a bug of the Rust library looks like."""


@pytest.mark.parametrize("text", ["short", LONG])
def test_a_panic_of_the_library_is_an_error_of_its_caller(tokenizer: RecordingTokenizer, text: str) -> None:
    def panic(*args: Any, **options: Any) -> None:
        raise PanicException("index out of bounds")

    async def main() -> None:
        encoder = encoder_of(tokenizer)
        tokenizer.backend = SimpleNamespace(encode_batch_fast=panic)  # type: ignore[assignment]
        async with asyncio.timeout(10):
            with pytest.raises(Internal, match="the tokenizer failed: index out of bounds"):
                await encoder.encode(text)
        encoder.close()

    asyncio.run(main())


def test_who_left_has_no_place_in_the_queue(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, max_queued=2, num_threads=1)
        running = await held_up(encoder, tokenizer)
        for _ in range(3):
            waiting = [asyncio.ensure_future(encoder.encode(LONG)) for _ in range(2)]
            await asyncio.sleep(0)
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        last = asyncio.ensure_future(encoder.encode(LONG))
        await asyncio.sleep(0)
        tokenizer.gate.set()
        assert (await last).text == (await running).text == LONG and tokenizer.batches == [1, 1]
        encoder.close()

    asyncio.run(main())


def test_a_template_that_is_slow_is_left_to_the_threads(
    tokenizer: RecordingTokenizer, trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation((ChatMessage("user", "hi"),))
    rendered: list[str] = []

    async def main() -> None:
        encoder = encoder_of(tokenizer, trained_folder)
        render = encoder.render

        def noted(conversation: Conversation) -> str:
            rendered.append(threading.current_thread().name)
            return render(conversation)

        monkeypatch.setattr(encoder, "render", noted)
        await asyncio.gather(*(encoder.encode(conversation) for _ in range(3)))
        assert set(rendered) == {threading.main_thread().name}
        monkeypatch.setattr(encoder_module, "INLINE_RENDER_S", 0.0)
        rendered.clear()
        found = await asyncio.gather(*(encoder.encode(conversation) for _ in range(3)))
        assert len({each.text for each in found}) == 1
        assert [name == threading.main_thread().name for name in rendered] == [True, False, False]
        await encoder.encode(conversation)
        assert rendered[-1].startswith("encode")
        encoder.close()

    asyncio.run(main())


def test_a_full_queue_refuses_at_once(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, max_queued=2, num_threads=1)
        running = await held_up(encoder, tokenizer)
        waiting = [asyncio.ensure_future(encoder.encode(LONG)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await encoder.encode(LONG)
        assert caught.value.retry_after_s
        tokenizer.gate.set()
        await asyncio.gather(running, *waiting)
        assert (await encoder.encode(LONG)).text == LONG
        encoder.close()

    asyncio.run(main())


def test_callers_that_went_away_are_not_encoded(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, num_threads=1)
        running = await held_up(encoder, tokenizer)
        gone = asyncio.ensure_future(encoder.encode(LONG))
        kept = asyncio.ensure_future(encoder.encode(LONG))
        await asyncio.sleep(0)
        gone.cancel()
        tokenizer.gate.set()
        await asyncio.gather(running, kept)
        assert tokenizer.batches == [1, 1]
        encoder.close()

    asyncio.run(main())


def test_conversations_without_a_template(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer)
        for content in ("short", LONG * 10):
            with pytest.raises(FailedPrecondition, match="tiny.*chat_template.jinja"):
                await encoder.encode(Conversation((ChatMessage("user", content),)))
        encoder.close()

    asyncio.run(main())


def test_large_prompts_leave_a_thread_to_the_others(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, num_threads=2)
        tokenizer.gate.clear()
        large = [asyncio.ensure_future(encoder.encode(f"{n} " * LARGE_CHARS)) for n in range(3)]
        while not tokenizer.batches:
            await asyncio.sleep(0.001)
        ordinary = asyncio.ensure_future(encoder.encode(LONG))
        while len(tokenizer.batches) < 2:
            await asyncio.sleep(0.001)
        large[1].cancel()
        tokenizer.gate.set()
        await asyncio.gather(ordinary, large[0], large[2])
        assert tokenizer.batches == [1, 1, 1], "the ordinary one began beside the first, who went away not at all"
        encoder.close()

    asyncio.run(main())


def test_one_thread_takes_large_prompts_too_in_the_order_they_came(tokenizer: RecordingTokenizer) -> None:
    async def main() -> None:
        encoder, order = encoder_of(tokenizer, num_threads=1), list[str]()

        async def encode(name: str, text: str) -> None:
            await encoder.encode(text)
            order.append(name)

        large = "x " * LARGE_CHARS
        await asyncio.gather(encode("1", LONG), encode("2", large), encode("3", f"b {LONG}"), encode("4", large))
        assert order == ["1", "3", "2", "4"], "what stands together shares a batch"
        encoder.close()

    asyncio.run(main())


def test_a_text_that_no_context_holds_is_refused(
    tokenizer: RecordingTokenizer, trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_calls, "MAX_TEXT_CHARS", len(LONG))

    async def main() -> None:
        encoder = encoder_of(tokenizer, trained_folder)
        assert (await encoder.encode(LONG)).text == LONG
        for max_context_tokens, said in ((0, "input: a text of 641 characters"), (2, "at least")):
            with pytest.raises(InvalidRequest, match=said):
                await encoder.encode(f"{LONG}!", max_context_tokens=max_context_tokens)
        assert await encoder.encode(Conversation((ChatMessage("user", f"{LONG}!"),)))
        encoder.close()

    asyncio.run(main())


def test_a_conversation_with_a_large_tool_is_not_rendered_on_the_loop() -> None:
    """What is rendered on the loop holds everybody up; what counts is all that a client sent."""
    content = Conversation((ChatMessage("user", "hi"),))
    assert content.num_chars() <= INLINE_CONVERSATION_CHARS
    large = {"description": "x" * 10_000}
    for conversation in (
        Conversation(content.messages, tools=(large,)),
        Conversation(content.messages, documents=(large,)),
        Conversation(content.messages, template_arguments=large),
        Conversation((ChatMessage("assistant", "hi", tool_calls=(large,)),)),
    ):
        assert conversation.num_chars() > 10_000


def test_prompts_are_remembered_and_split_tokens_are_text(tokenizer: RecordingTokenizer, trained_folder: Path) -> None:
    async def main() -> None:
        encoder = encoder_of(tokenizer, trained_folder, cache=EncodingCache(2**20))
        chat = Conversation((ChatMessage("system", LONG), ChatMessage("user", "a<s>b")))
        first, again = await encoder.encode(chat), await encoder.encode(chat)
        assert (first.cache_outcome, again.cache_outcome) == (CacheOutcome.MISS, CacheOutcome.HIT)
        assert first.token_ids == again.token_ids and again.num_cached > 100 and encoder.cache_bytes > 0
        assert first.token_ids == tokenizer.encode(first.text, add_special_tokens=False).token_ids
        split = await encoder.encode(chat, split_special_tokens=True)
        special = tokenizer.backend.token_to_id("<s>")
        assert special in first.token_ids and special not in split.token_ids
        assert split.cache_outcome is CacheOutcome.PART and split.text == first.text
        assert (await encoder.encode("<s>", split_special_tokens=True)).token_ids == tokenizer.encode_plain("<s>")
        encoder.close()

    asyncio.run(main())
