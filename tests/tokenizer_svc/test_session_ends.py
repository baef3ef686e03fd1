"""How what was asked for on a Session ends: cancelled, out of time, held by credit, drained, failed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from tests.fakes.live_tokenizer_tier import (
    TextPeer,
    live_tokenizer_tier,
    text_request,
    tokenizer_over_fake,
)
from tests.fakes.model_tier import fake_model_tier
from tokenizer_svc.detokenizer import Detokenizer
from tokenwire.errors import AlreadyExists, Internal, Overloaded
from tokenwire.requests import CancelReason, FinishReason, Terminal, Usage
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, tokenizer_pb2


def test_cancel_mid_stream_reaches_the_model_tier(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            await peer.submit(1, text_request("hello"))
            down = await fake.request()
            await down.say(*live.ids("some text"))
            await peer.until_text(1, "some text")
            await peer.cancel(1)
            await fake.until(lambda fake: fake.cancels == [(down.handle, "client")])
            await down.end(Terminal(FinishReason.CANCELLED, Usage(1, 0, 2)))
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            await peer.cancel(1)
            await peer.cancel(77)
            await peer.submit(2, text_request("still here"))
            await fake.request(1)
            assert len(fake.cancels) == 1, "cancels of finished and unknown handles are nothing"

    asyncio.run(main())


def test_a_broken_session_cancels_its_handles_below(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            other = await TextPeer.open(live)
            await peer.submit(1, text_request("hello"))
            await fake.request()
            await peer.submit(2, text_request("again"))
            await fake.request(1)
            await other.submit(1, text_request("unharmed"))
            kept = await fake.request(2)
            peer.call.cancel()
            gone = {(received.handle, "client") for received in fake.requests[:2]}
            await fake.until(lambda fake: set(fake.cancels) == gone)
            await kept.say(*live.ids("fine"))
            await kept.end(Terminal(FinishReason.LENGTH, Usage(1, 0, 1)))
            await other.end(1)
            assert other.texts[1] == "fine"
            await live.until_idle()

    asyncio.run(main())


def test_the_watchdog_ends_a_request_that_hangs(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            request = text_request("hello", timeout_ms=300)
            request.options.stop.stop_strings.append("END")
            await peer.submit(1, request)
            down = await fake.request()
            ids = live.ids("so far EN")
            await down.say(*ids)
            terminal = await peer.end(1)
            assert terminal.reason is FinishReason.DEADLINE
            assert terminal.usage == Usage(len(live.ids("hello")), 0, len(ids))
            assert peer.texts[1] == "so far EN"
            await fake.until(lambda fake: fake.cancels == [(down.handle, "deadline")])
            await down.say(*ids)
            await down.end(Terminal(FinishReason.LENGTH))
            await live.until_idle()

    asyncio.run(main())


def test_credits_hold_text_back_and_nobody_else(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = live.ids("The capital of France is Paris, it is.")
            request = text_request()
            request.token_ids.ids.extend(ids)
            await peer.submit(1, request, credit=3)
            await peer.submit(2, request)
            await peer.end(2)
            assert peer.texts[2] == "The capital of France is Paris, it is."
            await peer.until_text(1, live.tokenizer.decode(ids[:3], skip_special_tokens=True))
            assert 1 not in peer.terminals
            await peer.send(credits=[common_pb2.Credit(handle=1, tokens=len(ids) - 3)])
            assert (await peer.end(1)).reason is FinishReason.LENGTH
            assert peer.texts[1] == peer.texts[2]

    asyncio.run(main())


def test_what_was_generated_whole_waits_for_credit_until_its_time_is_over(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            ids = live.ids("The capital of France is Paris, it is.")
            request = text_request(timeout_ms=500)
            request.token_ids.ids.extend(ids)
            await peer.submit(1, request, credit=3)
            terminal = await peer.end(1)
            assert terminal.reason is FinishReason.DEADLINE and terminal.usage == Usage(len(ids), 0, len(ids))
            assert peer.texts[1] == live.tokenizer.decode(ids[:3], skip_special_tokens=True)

    asyncio.run(main())


def test_half_close_lets_what_runs_finish(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            await peer.submit(1, text_request("hello"))
            down = await fake.request()
            await peer.call.done_writing()
            await down.say(*live.ids("to the end"))
            await down.end(Terminal(FinishReason.LENGTH, Usage(1, 0, 1)))
            await peer.end(1)
            assert peer.texts[1] == "to the end"
            assert await peer.status() is grpc.StatusCode.OK

    asyncio.run(main())


def test_while_it_drains_no_session_is_opened_even_on_a_connection_that_is_open(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, peer):
            live.server.servicer.drain_sessions(5.0)
            late = live.stub.Session()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await late.read()
            assert from_rpc_error(caught.value).reason == "DRAINING"
            assert (await peer.read()).HasField("drain")

    asyncio.run(main())


def test_drain_asks_peers_to_move_on_and_lets_what_runs_finish(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as fake:
            async with live_tokenizer_tier(trained_folder, fake, drain_timeout_s=5.0) as live:
                peer = await TextPeer.open(live)
                await peer.submit(1, text_request("hello"))
                down = await fake.request()
                draining = asyncio.ensure_future(live.server.drain())
                assert (await peer.read()).drain.grace_ms == 5000
                await down.say(*live.ids("finished"))
                await down.end(Terminal(FinishReason.LENGTH, Usage(1, 0, 1)))
                await peer.end(1)
                assert peer.texts[1] == "finished"
                await asyncio.wait_for(draining, 5)

    asyncio.run(main())


def test_cancel_while_the_prompt_is_being_encoded(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"encode_window_ms": 20.0}) as (fake, live, peer):
            await peer.send(
                submits=[tokenizer_pb2.Submit(handle=1, request=text_request("long " * 80))],
                cancels=[common_pb2.Cancel(handle=1)],
            )
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            await live.until_idle()
            await peer.submit(2, text_request("hello"))
            await peer.end(2)
            assert len(fake.requests) == 1

    asyncio.run(main())


def test_reasons_pass_through(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, _, peer):
            await peer.submit(1, text_request("hello"))
            down = await fake.request()
            await peer.cancel(1, CancelReason.DEADLINE)
            await fake.until(lambda fake: fake.cancels == [(down.handle, "deadline")])
            overloaded = Overloaded("full", retry_after_s=1.5)
            await down.end(Terminal(FinishReason.ERROR, error=overloaded))
            error = (await peer.end(1)).error
            assert isinstance(error, Overloaded) and error.retry_after_s == 1.5

    asyncio.run(main())


def test_a_bug_while_decoding_is_a_typed_error_and_frees_the_model_tier(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(detokenizer: Detokenizer, token_ids: Sequence[int]) -> str:
        raise RuntimeError("a bug")

    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            await peer.submit(1, text_request("hello"))
            down = await fake.request()
            with monkeypatch.context() as broken:
                broken.setattr(Detokenizer, "push", fails)
                await down.say(10, 11, 12)
                terminal = await peer.end(1)
            assert isinstance(terminal.error, Internal)
            await fake.until(lambda fake: fake.cancels == [(down.handle, "client")])
            await peer.submit(2, text_request("hello"))
            await (await fake.request(1)).end(Terminal(FinishReason.LENGTH))
            await peer.end(2)
            await live.until_idle()

    asyncio.run(main())


def test_no_time_left_is_a_deadline_at_once(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"encode_window_ms": 20.0}, hold=True) as (_, live, peer):
            for handle, text in ((1, "hello"), (2, "long " * 80)):
                await peer.submit(handle, text_request(text, timeout_ms=0))
                assert (await peer.end(handle)).reason is FinishReason.DEADLINE
            await live.until_idle()

    asyncio.run(main())


def test_a_request_that_is_taken_back_no_longer_holds_its_id(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, _, peer):
            await peer.submit(1, text_request("one", request_id="same"))
            first = await fake.request(0)
            again = tokenizer_pb2.Submit(handle=2, request=text_request("two", request_id="same"))
            await peer.send(cancels=[common_pb2.Cancel(handle=1)], submits=[again])
            assert (await fake.request(1)).request.context.request_id == "same"
            await first.end(Terminal(FinishReason.CANCELLED))
            assert (await peer.end(1)).reason is FinishReason.CANCELLED

    asyncio.run(main())


def test_a_request_holds_its_id_until_each_choice_was_taken_back_or_its_end_was_sent(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            twice = text_request("one", request_id="same")
            twice.options.num_choices = 2
            await peer.submit(1, twice)
            first = await fake.request(0)
            await peer.cancel(1)
            await first.end(Terminal(FinishReason.CANCELLED))
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            await peer.submit(3, text_request("two", request_id="same"))
            assert type((await peer.end(3)).error) is AlreadyExists, "one of its choices runs"
            again = tokenizer_pb2.Submit(handle=4, request=text_request("two", request_id="same"), initial_credit=0)
            await peer.send(cancels=[common_pb2.Cancel(handle=2)], submits=[again])
            second = await fake.request(1)
            await first.end(Terminal(FinishReason.CANCELLED), choice=1)
            await second.say(*live.ids("two"))
            await second.end(Terminal(FinishReason.LENGTH))
            await live.until_idle()
            await peer.submit(5, text_request("three", request_id="same"))
            assert type((await peer.end(5)).error) is AlreadyExists, "its end waits for credit"
            await peer.send(credits=[common_pb2.Credit(handle=4, tokens=9)])
            assert (await peer.end(4)).reason is FinishReason.LENGTH
            await peer.submit(6, text_request("four", request_id="same"))
            assert (await fake.request(2)).request.context.request_id == "same"

    asyncio.run(main())
