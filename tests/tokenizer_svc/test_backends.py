import asyncio
from pathlib import Path

import pytest

from tests.fakes.live_tokenizer_tier import (
    LiveTokenizerTier,
    TextPeer,
    live_tokenizer_tier,
    text_request,
    tokenizer_over_fake,
)
from tests.fakes.model_tier import Frame, fake_model_tier
from tokenwire.errors import (
    Unavailable,
)
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.v1 import common_pb2


def test_lost_before_the_first_token_goes_to_another_model_tier(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second) as live:
                peer = await TextPeer.open(live)
                request = text_request("hello", request_id="r1")
                request.options.num_choices = 2
                await peer.submit(1, request)
                while not (first.requests or second.requests):
                    await asyncio.sleep(0.002)
                lost, other = (first, second) if first.requests else (second, first)
                await lost.kill()
                down = await other.request()
                assert down.request.token_ids == lost.requests[0].request.token_ids
                options = down.request.options
                assert options.stop.max_tokens == 512 - len(down.prompt), "what it was to be where it was first"
                options.stop.ClearField("max_tokens")
                assert options == lost.requests[0].request.options, "the same seed too"
                for choice in range(2):
                    await down.say(*live.ids("second try"), choice=choice)
                    await down.end(Terminal(FinishReason.LENGTH, Usage(1, 0, 3)), choice)
                for handle in (1, 2):
                    assert (await peer.end(handle)).reason is FinishReason.LENGTH
                    assert peer.texts[handle] == "second try"
                await live.until_idle()

    asyncio.run(main())


def test_refused_by_a_model_tier_that_goes_down_is_tried_elsewhere(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second, max_resumes=1) as live:
                peer = await TextPeer.open(live)
                await peer.submit(1, text_request("hello"))
                while not (first.requests or second.requests):
                    await asyncio.sleep(0.002)
                going, other = (first, second) if first.requests else (second, first)
                await going.requests[0].end(Terminal(FinishReason.ERROR, error=Unavailable("the engine died")))
                down = await other.request()
                await down.end(Terminal(FinishReason.ERROR, error=Unavailable("this one too")))
                terminal = await peer.end(1)
                assert isinstance(terminal.error, Unavailable) and terminal.error.message == "this one too"

    asyncio.run(main())


def test_lost_after_the_first_token_goes_on_at_another_model_tier(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second) as live:
                peer = await TextPeer.open(live)
                request = text_request("hello", request_id="r1", timeout_ms=60_000)
                request.options.num_choices = 2
                request.options.stop.min_tokens = 3
                await peer.submit(1, request)
                while not (first.requests or second.requests):
                    await asyncio.sleep(0.002)
                lost, other = (first, second) if first.requests else (second, first)
                output = live.ids("naïve 日本語 and 🦊🦊 jump, done")
                for cut in range(1, 3):
                    await lost.requests[0].say(*output[: 3 * cut], choice=cut - 1)
                while peer.num_tokens != {1: 3, 2: 6}:
                    await peer.read()
                await lost.kill()
                for choice in range(2):
                    down = await other.request(choice)
                    generated = 3 * (choice + 1)
                    assert down.request.token_ids == [*lost.requests[0].prompt, *output[:generated]]
                    assert down.request.num_generated_tokens == generated and down.request.first_choice == choice
                    assert down.request.context.request_id == "r1" and down.request.context.timeout_ms <= 60_000
                    assert down.request.options.sampling == lost.requests[0].request.options.sampling
                    assert down.request.options.stop.min_tokens == 3 and down.request.options.num_choices == 1
                    await down.say(*output[generated:])
                    await down.end(Terminal(FinishReason.LENGTH, Usage(1, 1, len(output))))
                for handle in (1, 2):
                    terminal = await peer.end(handle)
                    assert terminal.reason is FinishReason.LENGTH and terminal.usage == Usage(1, 1, len(output))
                    assert peer.texts[handle] == "naïve 日本語 and 🦊🦊 jump, done" and peer.num_tokens[handle] == len(
                        output
                    )
                await live.until_idle()

    asyncio.run(main())


def test_without_resumes_a_loss_after_the_first_token_is_a_typed_error_with_what_was_made(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second, max_resumes=0) as live:
                peer = await TextPeer.open(live)
                await peer.submit(1, text_request("hello"))
                while not (first.requests or second.requests):
                    await asyncio.sleep(0.002)
                fake, other = (first, second) if first.requests else (second, first)
                await fake.requests[0].say(*live.ids("half of"))
                await peer.until_text(1, "half of")
                await fake.kill()
                terminal = await peer.end(1)
                assert isinstance(terminal.error, Unavailable)
                assert terminal.error.reason == "MODEL_TIER_LOST"
                assert terminal.error.message.startswith(f"the model tier at {fake.target} was lost")
                assert terminal.usage.completion_tokens == len(live.ids("half of"))
                assert not other.requests

    asyncio.run(main())


def test_the_only_model_tier_is_lost_and_comes_back(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"max_resumes": 0}, hold=True) as (fake, live, peer):
            await peer.submit(1, text_request("hello"))
            await fake.request()
            await fake.kill()
            assert isinstance((await peer.end(1)).error, Unavailable)
            await peer.submit(2, text_request("hello"))
            error = (await peer.end(2)).error
            assert isinstance(error, Unavailable) and error.reason == "MODEL_TIER_DOWN"
            assert fake.target in error.message
            fake.hold = False
            await fake.start()
            await live.until_ready(1)
            await peer.submit(3, text_request("hello"))
            assert (await peer.end(3)).reason is FinishReason.LENGTH

    asyncio.run(main())


def test_two_model_tiers_share_the_load(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second) as live:
                peer = await TextPeer.open(live)
                for handle in range(1, 21):
                    await peer.submit(handle, text_request("hello"))
                await first.until(lambda _: len(first.requests) + len(second.requests) == 20)
                assert len(first.requests) == len(second.requests) == 10

    asyncio.run(main())


def test_a_busy_or_draining_model_tier_is_left_out(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first, fake_model_tier(hold=True) as second:
            async with live_tokenizer_tier(trained_folder, first, second) as live:
                peer = await TextPeer.open(live)
                busy = common_pb2.Load(running=30, queued=10, max_batch_size=1)
                await first.sessions[0].send(Frame(load=busy))
                await live_load(live, 0, 40.0)
                for handle in range(1, 5):
                    await peer.submit(handle, text_request("hello"))
                await second.request(3)
                await second.sessions[0].send(Frame(load=common_pb2.Load(draining=True)))
                await live.until_ready(1)
                await peer.submit(5, text_request("hello"))
                await first.request(0)
                await first.sessions[0].send(Frame(drain=common_pb2.Drain(reason="moving on")))
                await first.until(lambda fake: len(fake.sessions) == 2)
                await live.until_ready(1)
                await peer.submit(6, text_request("hello"))
                moved = await first.request(1)
                assert moved.session is first.sessions[1], "new work goes to the new stream"
                await first.requests[0].say(*live.ids("old stream"))
                await first.requests[0].end(Terminal(FinishReason.LENGTH, Usage(1, 0, 1)))
                await peer.end(5)
                assert peer.texts[5] == "old stream"

    asyncio.run(main())


async def live_load(live: LiveTokenizerTier, replica: int, load: float) -> None:
    async with asyncio.timeout(10):
        while live.server.replicas[replica].load != load:
            await asyncio.sleep(0.002)


def test_a_model_tier_with_another_vocabulary_is_refused(
    trained_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with fake_model_tier(vocabulary="sha256:other") as wrong, fake_model_tier() as right:
            async with live_tokenizer_tier(trained_folder, wrong, right, wait=False) as live:
                await live.until_ready(1)
                peer = await TextPeer.open(live)
                for handle in range(1, 9):
                    await peer.submit(handle, text_request("hello"))
                for handle in range(1, 9):
                    assert (await peer.end(handle)).reason is FinishReason.LENGTH
                assert len(right.requests) == 8 and not wrong.requests
                await wrong.until(lambda fake: len(fake.sessions) >= 3)
                said = [record for record in caplog.records if "refused" in record.message or "lost" in record.message]
                assert len(said) == 1, "once, however often it is tried"
                problem = live.server.replicas[0].problem()
                assert "sha256:other" in problem and live.tokenizer.fingerprint in problem

    asyncio.run(main())


def test_a_stop_string_stands_when_the_model_tier_is_lost_before_its_end(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            request = text_request("hello")
            request.options.stop.stop_strings.append("STOP")
            await peer.submit(1, request)
            down = await fake.request()
            ids = live.ids("yes STOP no")
            await down.say(*ids)
            await peer.until_text(1, "yes ")
            await fake.kill()
            terminal = await peer.end(1)
            assert terminal.reason is FinishReason.STOP_STRING
            assert terminal.usage.prompt_tokens == len(live.ids("hello"))

    asyncio.run(main())


def test_a_frame_that_does_not_add_up_costs_that_model_tier_its_stream(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"max_resumes": 0}, hold=True) as (fake, live, peer):
            await peer.submit(1, text_request("hello"))
            down = await fake.request()
            await down.session.send(Frame(handles=[down.handle], counts=[5], token_ids=[1]))
            assert (await peer.end(1)).error is not None
            await live.until_ready(1)
            await peer.submit(2, text_request("hello"))
            await (await fake.request(1)).end(Terminal(FinishReason.LENGTH))
            await peer.end(2)

    asyncio.run(main())
