"""Log-probabilities on their way through the tier, on the real wire: one for each token that is delivered."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import (
    LiveTokenizerTier,
    TextPeer,
    live_tokenizer_tier,
    text_request,
    tokenizer_over_fake,
)
from tests.fakes.logprobs import logprob_of
from tests.fakes.model_tier import Frame, fake_model_tier
from tokenwire.errors import Internal
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.v1 import common_pb2

TEXT = "The fox: 🦊🦊, naïve 日本語 done."


def request_of(ids: list[int], *, logprobs: int | None = 2, prompt_logprobs: int | None = None) -> Any:
    """A request that the fake answers with its own prompt."""
    request = text_request()
    request.token_ids.ids.extend(ids)
    if logprobs is not None:
        request.options.output.logprobs = logprobs
    if prompt_logprobs is not None:
        request.options.output.prompt_logprobs = prompt_logprobs
    return request


def check(live: LiveTokenizerTier, peer: TextPeer, handle: int, ids: list[int], *, num_top: int = 2) -> None:
    """Exactly one for each token that was delivered, with the right values, texts and places."""
    found = peer.logprobs[handle]
    assert [t.token_id for t in found] == ids and len(found) == peer.num_tokens[handle]
    text_of, decode = live.tokenizer.token_text, live.tokenizer.decode
    for n, logprob in enumerate(found):
        assert (logprob.logprob, logprob.text) == (logprob_of(ids[n], 0).logprob, text_of(ids[n]))
        assert [(t.token_id, t.text) for t in logprob.top] == [
            (ids[n] + i, text_of(ids[n] + i)) for i in range(num_top)
        ]
        assert logprob.text_offset == len(decode(ids[:n], skip_special_tokens=True).rstrip("\ufffd"))


def test_each_token_has_one_also_within_a_character(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = live.ids(TEXT)
            await peer.submit(1, request_of(ids))
            await peer.submit(2, request_of(ids, logprobs=0))
            await peer.submit(3, request_of(ids, logprobs=None))
            for handle in (1, 2, 3):
                await peer.end(handle)
                assert peer.texts[handle] == TEXT
            check(live, peer, 1, ids)
            check(live, peer, 2, ids, num_top=0)
            fox = TEXT.index("🦊")
            assert [t.text_offset for t in peer.logprobs[1]].count(fox) > 1, "an emoji is several tokens"
            assert 3 not in peer.logprobs

    asyncio.run(main())


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_cuts_them_with_the_tokens(trained_folder: Path, include: bool, together: bool) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            request = request_of(live.ids("hello"))
            request.options.stop.stop_strings.extend(["is Par", "never"])
            request.options.stop.include_stop_string = include
            await peer.submit(1, request)
            down = await fake.request()
            assert down.request.options.output.logprobs == 2
            ids = live.ids("The capital is Paris and more")
            if together:
                await down.say(*ids)
            else:
                for token_id in ids:
                    await down.say(token_id)
            await down.end(Terminal(FinishReason.LENGTH, Usage(9, 4, len(ids))))
            assert (await peer.end(1)).reason is FinishReason.STOP_STRING
            assert peer.texts[1] == ("The capital is Par" if include else "The capital ")
            check(live, peer, 1, ids[: peer.num_tokens[1]])

    asyncio.run(main())


def test_text_that_is_held_back_to_the_end_has_had_its_own(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = live.ids("wait 🦊 for it EN")
            request = request_of(ids)
            request.options.stop.stop_strings.append("END")
            await peer.submit(1, request)
            await peer.end(1)
            assert peer.texts[1] == "wait 🦊 for it EN"
            check(live, peer, 1, ids)

    asyncio.run(main())


def test_with_credits_they_come_with_their_text(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            await peer.submit(1, request_of([5, 6], prompt_logprobs=1), credit=2)
            down = await fake.request()
            await down.say_prompt(6)
            ids = live.ids(TEXT)
            await down.say(*ids[:3])
            await down.say(*ids[3:])
            await down.end(Terminal(FinishReason.LENGTH, Usage(2, 0, len(ids))))
            while peer.num_tokens.get(1, 0) < 2:
                await peer.read()
            assert [t.token_id for t in peer.prompt_logprobs[1]] == [6] and not peer.logprobs[1]
            await peer.send(credits=[common_pb2.Credit(handle=1, tokens=len(ids))])
            await peer.end(1)
            check(live, peer, 1, ids)

    asyncio.run(main())


def test_the_prompts_come_first_with_their_places_in_it(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            prompt = live.ids("A fox 🦊 said")
            for handle, logprobs in ((1, 2), (2, None)):
                await peer.submit(handle, request_of(prompt, logprobs=logprobs, prompt_logprobs=3))
                down = await fake.request(handle - 1)
                await down.say_prompt(*prompt[1:4])
                await down.say_prompt(*prompt[4:])
                await down.say(*live.ids("hello"))
                await down.end(Terminal(FinishReason.LENGTH, Usage(len(prompt), 0, 1)))
                await peer.end(handle)
                found = peer.prompt_logprobs[handle]
                assert [t.token_id for t in found] == prompt[1:] and all(len(t.top) == 3 for t in found)
                assert [t.text for t in found] == list(map(live.tokenizer.token_text, prompt[1:]))
                assert [t.text_offset for t in found] == [
                    len(live.tokenizer.decode(prompt[:n], skip_special_tokens=False).rstrip("\ufffd"))
                    for n in range(1, len(prompt))
                ]
                assert peer.texts[handle] == "hello"
            check(live, peer, 1, live.ids("hello"))
            assert not peer.logprobs[2]

    asyncio.run(main())


def test_the_prompts_and_the_first_tokens_may_share_a_frame_and_choices_have_their_own(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = live.ids("of two minds")
            request = request_of(ids, prompt_logprobs=0)
            request.options.num_choices = 2
            await peer.submit(4, request)
            for handle in (4, 5):
                await peer.end(handle)
                check(live, peer, handle, ids)
                assert [t.token_id for t in peer.prompt_logprobs[handle]] == ids[1:]

    asyncio.run(main())


def test_a_model_tier_that_leaves_some_out_ends_its_request_alone(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            await peer.submit(1, request_of(live.ids("hello")))
            down = await fake.request()
            await down.session.send(Frame(handles=[down.handle], counts=[1], token_ids=[5]))
            assert isinstance((await peer.end(1)).error, Internal)
            await fake.until(lambda fake: fake.cancels == [(down.handle, "client")])
            await peer.submit(2, request_of(live.ids("hello")))
            other = await fake.request(1)
            await other.say(*live.ids("fine"))
            await other.end(Terminal(FinishReason.LENGTH))
            await peer.end(2)
            check(live, peer, 2, live.ids("fine"))

    asyncio.run(main())


def test_what_was_sent_of_the_prompts_is_not_sent_again_when_the_request_goes_on_elsewhere(
    trained_folder: Path,
) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second) as live:
                peer = await TextPeer.open(live)
                await peer.submit(1, request_of([5, 6, 7], prompt_logprobs=0))
                await first.until(lambda _: first.requests or second.requests)
                lost, other = (first, second) if first.requests else (second, first)
                await lost.requests[0].say_prompt(6)
                while 1 not in peer.prompt_logprobs:
                    await peer.read()
                await lost.kill()
                down = await other.request()
                await down.say_prompt(6)
                await down.say_prompt(7)
                await down.say(*live.ids("fine"))
                await down.end(Terminal(FinishReason.LENGTH))
                await peer.end(1)
                assert [t.token_id for t in peer.prompt_logprobs[1]] == [6, 7]
                check(live, peer, 1, live.ids("fine"))

    asyncio.run(main())


def test_min_tokens_goes_down_and_holds_stop_strings_off(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (fake, live, peer):
            ids = live.ids("one END two END three")
            second = next(
                n for n in range(len(ids)) if live.tokenizer.decode(ids[:n], skip_special_tokens=True).count("END") == 2
            )
            request = request_of(ids)
            request.options.stop.stop_strings.append("END")
            request.options.stop.min_tokens = live.tokenizer.decode(ids, skip_special_tokens=True).count(" ")
            await peer.submit(1, request)
            terminal = await peer.end(1)
            assert fake.requests[0].request.options.stop.min_tokens == request.options.stop.min_tokens
            assert terminal.reason is FinishReason.STOP_STRING and terminal.usage.completion_tokens == second
            assert peer.texts[1] == "one END two "
            check(live, peer, 1, ids[:second])

    asyncio.run(main())
