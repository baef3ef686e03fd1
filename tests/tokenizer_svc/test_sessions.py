import asyncio
from pathlib import Path

import pytest

from tests.fakes.live_tokenizer_tier import (
    text_request,
    tokenizer_over_fake,
)
from tokenwire.requests import FinishReason, ModelTimings, Terminal, Usage

TEXT = "The capital of France is Paris, naïve 日本語 😀 done."


def test_streamed_text_equals_decode_and_every_request_ends_once(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (fake, live, peer):
            for handle in range(1, 33):
                await peer.submit(handle, text_request(f"{handle} {TEXT}"))
            for handle in range(1, 33):
                terminal = await peer.end(handle)
                ids = live.ids(f"{handle} {TEXT}")
                assert peer.texts[handle] == f"{handle} {TEXT}"
                assert peer.num_tokens[handle] == len(ids)
                assert terminal.reason is FinishReason.LENGTH
                assert terminal.usage == Usage(len(ids), 0, len(ids))
                assert terminal.tokenizer_timings is not None and terminal.tokenizer_timings.total_s > 0
            await live.until_idle()
            assert {tuple(r.prompt) for r in fake.requests} == {
                tuple(live.ids(f"{handle} {TEXT}")) for handle in range(1, 33)
            }

    asyncio.run(main())


def test_hello_says_what_is_served(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, max_context_tokens=99) as (_, live, peer):
            card = peer.hello.models[0]
            assert (card.name, card.max_context_tokens) == (trained_folder.name, 99)
            assert card.vocab_size == live.tokenizer.vocab_size
            assert card.fingerprint.vocabulary == live.tokenizer.fingerprint
            assert peer.hello.protocol_version == 1 and peer.hello.epoch

    asyncio.run(main())


def test_what_is_sent_down(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            request = text_request(
                "hello", request_id="r1", priority=3, tenant="t", timeout_ms=5000, traceparent="00-a"
            )
            request.options.sampling.temperature = 0.5
            request.options.stop.max_tokens = 7
            request.options.stop.stop_token_ids.append(3)
            request.options.stop.stop_strings.append("END")
            request.options.num_choices = 2
            request.cache_salt = "salt"
            await peer.submit(5, request)
            down = (await fake.request()).request
            assert list(down.token_ids) == live.ids("hello")
            context, options = down.context, down.options
            assert (context.request_id, context.priority, context.tenant) == ("r1", 3, "t")
            assert context.traceparent == "00-a"
            assert 4000 < context.timeout_ms < 5000, "less than was left, so that its DEADLINE comes before ours"
            assert options.sampling.temperature == 0.5 and options.sampling.HasField("seed")
            assert (options.stop.max_tokens, list(options.stop.stop_token_ids)) == (7, [3])
            assert not options.stop.stop_strings, "stop strings are this tier's own business"
            assert options.num_choices == 2
            assert down.cache_salt == "salt"
            assert down.fingerprint.vocabulary == live.tokenizer.fingerprint

    asyncio.run(main())


def test_seeds_are_drawn_once_per_request_and_given_ones_are_kept(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, _, peer):
            given = text_request("hello")
            given.options.sampling.seed = 42
            for handle, request in enumerate((text_request("hello"), text_request("hello"), given), start=1):
                await peer.submit(handle, request)
            await fake.request(2)
            seeds = [r.request.options.sampling.seed for r in fake.requests]
            assert seeds[0] != seeds[1] and seeds[2] == 42

    asyncio.run(main())


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_across_frames(trained_folder: Path, include: bool) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            request = text_request("hello")
            request.options.stop.stop_strings.extend(["is Par", "never"])
            request.options.stop.include_stop_string = include
            await peer.submit(1, request)
            down = await fake.request()
            ids = live.ids("The capital is Paris and more")
            through = next(
                n for n in range(len(ids)) if "is Par" in live.tokenizer.decode(ids[:n], skip_special_tokens=True)
            )
            for token_id in ids:
                await down.say(token_id)
            await peer.until_text(1, "The capital is Par" if include else "The capital ")
            await fake.until(lambda fake: (down.handle, "stop_string") in fake.cancels)
            assert not peer.terminals, "the model tier's terminal event is awaited"
            timings = ModelTimings(0.25, 0.5, 1.0)
            await down.end(Terminal(FinishReason.LENGTH, Usage(9, 4, len(ids)), model_timings=timings))
            terminal = await peer.end(1)
            assert (terminal.reason, terminal.stop_string) == (FinishReason.STOP_STRING, "is Par")
            assert terminal.usage == Usage(9, 4, through), "counted to the matching token"
            assert terminal.model_timings == timings
            assert peer.num_tokens[1] == through
            assert peer.texts[1] == ("The capital is Par" if include else "The capital ")
            await live.until_idle()

    asyncio.run(main())


def test_a_possible_stop_string_is_given_out_at_the_end(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, _, peer):
            request = text_request("wait for it EN")
            request.options.stop.stop_strings.append("END")
            await peer.submit(1, request)
            terminal = await peer.end(1)
            assert terminal.reason is FinishReason.LENGTH
            assert peer.texts[1] == "wait for it EN"

    asyncio.run(main())


def test_token_ids_come_along_when_asked_for(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = live.ids(TEXT)
            request = text_request()
            request.token_ids.ids.extend(ids)
            request.options.output.return_token_ids = True
            await peer.submit(1, request)
            await peer.end(1)
            assert peer.token_ids[1] == ids

    asyncio.run(main())


def test_special_tokens_are_shown_when_asked_for(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = [*live.ids("hello"), live.tokenizer.backend.token_to_id("<|im_end|>")]
            for handle, skip in ((1, True), (2, False)):
                request = text_request()
                request.token_ids.ids.extend(ids)
                request.options.output.skip_special_tokens = skip
                await peer.submit(handle, request)
            await peer.end(1)
            await peer.end(2)
            assert (peer.texts[1], peer.texts[2]) == ("hello", "hello<|im_end|>")

    asyncio.run(main())


def test_a_conversation_is_rendered_and_encoded_without_further_special_tokens(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (fake, live, peer):
            request = text_request()
            request.conversation.messages.add(role="user", content="Hi")
            await peer.submit(1, request)
            await peer.end(1)
            expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            assert live.tokenizer.decode(fake.requests[0].prompt, skip_special_tokens=False) == expected

    asyncio.run(main())


def test_choices_have_their_own_text_and_end(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            request = text_request("hello")
            request.options.num_choices = 3
            await peer.submit(10, request)
            await peer.submit(13, text_request("other"))
            down = await fake.request()
            for choice in (2, 0, 1):
                await down.say(*live.ids(f"choice {choice}"), choice=choice)
                await down.end(Terminal(FinishReason.STOP_TOKEN, Usage(1, 0, 1), stop_token_id=7), choice)
            for choice in range(3):
                terminal = await peer.end(10 + choice)
                assert (terminal.reason, terminal.stop_token_id) == (FinishReason.STOP_TOKEN, 7)
                assert peer.texts[10 + choice] == f"choice {choice}"

    asyncio.run(main())
