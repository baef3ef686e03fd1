"""Sessions of both clients against the real gateway: many requests, room, credits, cancellation, loss."""

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.certificates import Certificates
from tests.fakes.identities import Callers
from tests.fakes.live_gateway import gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tokenwire.client import AsyncClient, AsyncSessionOutputs, Client, Finished, FinishReason, Message, TextDelta, Tool
from tokenwire.errors import DeadlineExceeded, InvalidRequest, Unauthenticated, Unavailable
from tokenwire.requests import CancelReason


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_many_more_requests_than_may_be_open_at_once() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live), AsyncClient(live.grpc_target) as client:
            async with client.session(max_open=8) as session:

                async def one(number: int) -> str:
                    outputs = await session.submit(f"a{number} b c")
                    assert tier.num_running <= 8
                    return await outputs.text()

                texts = await asyncio.gather(*map(one, range(100)))
            assert texts == [f"a{number} b c" for number in range(100)]
            await live.until_idle()

    asyncio.run(main())


def test_choices_and_conversations() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session:
                outputs = await (await session.submit("x y", num_choices=3, return_token_ids=True)).outputs()
                assert [(each.choice, each.text, each.token_ids) for each in outputs] == [
                    (choice, "x y", (0, 1)) for choice in range(3)
                ]
                chat = await session.chat("hello there", temperature=0, request_id="mine")
                assert (
                    chat.request_id == "mine" and (await chat.outputs())[0].terminal.reason is FinishReason.STOP_TOKEN
                )
                last = [Message("user", "hello there")]
                tool = Tool("look", "Looks.")
                await (
                    await session.chat(
                        last, tools=[tool], documents=[{"a": 1}], template_arguments={"b": 2}, temperature=0
                    )
                ).text()
            sent = tier.requests[-1].conversation
            assert [each.name for each in sent.tools] == ["look"]
            assert (list(sent.documents_json), sent.template_arguments_json) == (['{"a": 1}'], '{"b": 2}')
            assert tier.requests[-1].conversation.messages[0].content == "hello there"
            assert tier.requests[-1].options.sampling.HasField("temperature")

    asyncio.run(main())


def test_a_slow_reader_gets_what_it_reads_and_stops_nobody() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session:
                slow = await session.submit("a b c d e f g h", credit=2)
                assert await (await session.submit("x y z")).text() == "x y z"
                await asyncio.sleep(0.05)
                assert sum(event.num_tokens for event in slow._waiting) == 2, "no more than was granted"
                assert await slow.text() == "a b c d e f g h"
                none = await session.submit("a b c", credit=0)
                assert await (await session.submit("x y z")).text() == "x y z"
                assert not none._waiting
                none.grant(1)
                assert (await anext(none)) == TextDelta("a", 1)
                none.grant(2)
                assert await none.text() == "a b c"
                with pytest.raises(ValueError, match="grant"):
                    none.grant(0)

    asyncio.run(main())


def test_a_request_that_is_cancelled_ends_so() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session:
                held, other = await session.submit("!hold a b"), await session.submit("!hold c d", num_choices=2)
                await anext(held)
                held.cancel()
                assert (await held.outputs())[0].terminal.reason is FinishReason.CANCELLED
                other.cancel(1)
                async for event in other:
                    if isinstance(event, Finished):
                        break
                assert event.choice == 1 and tier.num_running == 1
                other.cancel()
            await live.until_idle()

    asyncio.run(main())


def test_what_is_wrong_with_one_request_is_its_own() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live), AsyncClient(live.grpc_target) as client:
            async with client.session(max_open=4) as session:
                bad = await session.submit("!bad a")
                with pytest.raises(InvalidRequest) as caught:
                    await bad.text()
                assert caught.value.violations
                with pytest.raises(InvalidRequest, match="at most 4"):
                    await session.submit("a", num_choices=5)
                with pytest.raises(InvalidRequest, match="temperature"):
                    await session.submit("a", temperature=-1)
                for credit in (-1, 1.5, 2**32):
                    with pytest.raises(ValueError, match=f"credit {credit}"):
                        await session.submit("a", credit=credit)  # type: ignore[arg-type]
                for max_open in (0, 1.5):
                    with pytest.raises(ValueError, match=f"max_open {max_open}"):
                        client.session(max_open=max_open)  # type: ignore[arg-type]
                outputs = await session.submit("!hold a")
                for choice in (1, -1, "a", 0.0):
                    for refused in (outputs.cancel, partial(outputs.grant, 1)):
                        with pytest.raises(ValueError, match="choice .* is not allowed"):
                            refused(choice)  # type: ignore[operator]
                for tokens in (0, 1.5, 2**32):
                    with pytest.raises(ValueError, match="is not allowed"):
                        outputs.grant(tokens)  # type: ignore[arg-type]
                outputs.cancel()
                await outputs.outputs()
                assert session._core._num_open == 0
                assert await (await session.submit("fine")).text() == "fine"

    asyncio.run(main())


def test_a_stream_that_breaks_fails_what_was_on_it_and_the_next_request_has_a_new_one() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session:
                held = await session.submit("!hold a b")
                assert isinstance(await anext(held), TextDelta)
                session._core._client.stream.call.cancel()  # type: ignore[union-attr]
                with pytest.raises(Exception, match=r"(?i)cancel|session"):
                    await held.text()
                assert await (await session.submit("again")).text() == "again"

    asyncio.run(main())


def test_a_server_that_drains_is_left_for_a_new_stream() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session:
                held = await session.submit("!hold a b")
                await anext(held)
                first = session._core._client.stream
                (server_side,) = live.server.service._sessions
                server_side.drain("it stops", 5.0)
                await until(lambda: session._core._client.stream not in (first, None))
                assert await (await session.submit("elsewhere")).text() == "elsewhere"
                held.cancel()
                assert (await held.outputs())[0].terminal.reason is FinishReason.CANCELLED, "the old stream ran out"

    asyncio.run(main())


def test_a_gateway_that_is_not_there_and_a_session_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.client.session_core.CONNECT_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with AsyncClient("127.0.0.1:1") as client, client.session() as session:
            with pytest.raises(Unavailable, match="cannot be reached"):
                await session.submit("a")
            waiting = asyncio.ensure_future(session.submit("a"))
            await asyncio.sleep(0.01)
            await session.close()
            with pytest.raises(Unavailable, match="closed"):
                await waiting

    asyncio.run(main())
    with Client("127.0.0.1:1") as client, client.session() as session:
        session.close()
        with pytest.raises(Unavailable, match="closed"):
            session.submit("a")


def test_the_time_that_a_request_waits_for_room_is_its_own() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live), AsyncClient(live.grpc_target) as client:
            async with client.session(max_open=1) as session:
                held = await session.submit("!hold a b")
                first, behind = session.submit("a", timeout_s=0.3), session.submit("a", timeout_s=0.2)
                for end in await asyncio.gather(first, behind, return_exceptions=True):
                    assert isinstance(end, DeadlineExceeded) and "room" in end.message
                assert session._core._num_open == 1
                waiting = asyncio.ensure_future(session.submit("a b", timeout_s=60.0))
                await asyncio.sleep(0.3)
                held.cancel()
                assert await (await waiting).text() == "a b"
                assert 0 < tier.requests[-1].context.timeout_ms <= 59_710
        async with AsyncClient("127.0.0.1:1") as client, client.session() as session:
            with pytest.raises(DeadlineExceeded, match="connection"):
                await session.submit("a", timeout_s=0.2)

    asyncio.run(main())


def test_a_client_that_is_closed_before_its_session_ends_it_quietly() -> None:
    async def main() -> None:
        problems: list[Any] = []

        def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            # gRPC gives this loop what comes late for calls of the loops before it, which are closed.
            if "PollerCompletionQueue" not in context["message"]:
                problems.append(context)

        asyncio.get_running_loop().set_exception_handler(note)
        client = AsyncClient("127.0.0.1:1")
        session = client.session()
        waiting = asyncio.ensure_future(session.submit("a"))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await waiting
        await until(lambda: not session._core._client._tasks)
        await session.close()
        gc.collect()
        assert problems == []

    asyncio.run(main())


def test_closing_tells_every_thread_that_waits() -> None:
    with Client("127.0.0.1:1") as client:
        session = client.session()
        ends: list[str] = []

        def submit() -> None:
            try:
                session.submit("a")
            except Unavailable as error:
                ends.append(error.reason)

        threads = [threading.Thread(target=submit, daemon=True) for _ in range(50)]
        for thread in threads:
            thread.start()
        session.close()
        for thread in threads:
            thread.join(20)
        assert ends == ["SESSION_CLOSED"] * 50


def blocking(target: str) -> None:
    """What ordinary code does, several threads of it on one session."""
    with Client(target) as client, client.session(max_open=16) as session:
        running = [session.submit(f"a{number} b", credit=1) for number in range(8)]
        assert [outputs.text() for outputs in running] == [f"a{number} b" for number in range(8)]
        found: list[str] = []

        def work(number: int) -> None:
            for turn in range(20):
                found.append(session.submit(f"{number} {turn}").text())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(found) == sorted(f"{number} {turn}" for number in range(4) for turn in range(20))
        with session.submit("!hold a b") as held:
            assert isinstance(next(held), TextDelta)
            with pytest.raises(ValueError, match="choice 9 is not allowed"):
                held.cancel(9)
        assert held.outputs()[0].terminal.reason is FinishReason.CANCELLED
        none = session.submit("a b c", credit=0)
        none.grant(3)
        assert none.text() == "a b c"
        with pytest.raises(InvalidRequest):
            session.submit("!bad a").text()
        left = session.submit("!hold a")
        session.close()
        with pytest.raises(Unavailable, match="closed"):
            left.text()
        session.close()


def test_ordinary_code() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            await asyncio.to_thread(blocking, live.grpc_target)
            await live.until_idle()

    asyncio.run(main())


def test_who_may_not_call_is_told_at_once(tmp_path: Path) -> None:
    callers, certificates = Callers.write(tmp_path / "identities.json"), Certificates(tmp_path / "certs")
    tls = certificates.client()

    async def main() -> None:
        settings = {"identity_file": str(callers.path), **certificates.server()}
        async with fake_tokenizer_tier() as tier, live_gateway(tier, tls=tls, **settings) as live:
            for key, kind in (("", Unauthenticated), ("nonsense", Unauthenticated)):
                async with AsyncClient(live.grpc_target, api_key=key, tls=tls) as client, client.session() as session:
                    with pytest.raises(kind):
                        await session.submit("a")
            await asyncio.to_thread(with_a_key, live.grpc_target)

    def with_a_key(target: str) -> None:
        with Client(target, api_key=callers.keys["alice"], tls=tls) as client, client.session() as session:
            assert session.submit("a b").text() == "a b"

    asyncio.run(main())


def test_outputs_that_nobody_holds_any_more_are_taken_back() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live), AsyncClient(live.grpc_target) as client:
            async with client.session(max_open=2) as session:
                async for event in await session.submit("!hold a b", num_choices=2):
                    assert isinstance(event, TextDelta)
                    break
                assert await (await session.submit("there is room", timeout_s=30.0)).text() == "there is room"
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await (await session.submit("!hold a b", num_choices=2)).text()
                async with await session.submit("!hold a b", num_choices=2) as held:
                    assert isinstance(await anext(held), TextDelta)
                assert await (await session.submit("again", timeout_s=30.0)).text() == "again"
                assert {each.terminal.reason for each in await held.outputs()} == {FinishReason.CANCELLED}
                assert session._core._num_open == 0
                assert tier.cancels == [CancelReason.CLIENT] * 6
            await live.until_idle()

    asyncio.run(main())


def test_outputs_that_ordinary_code_does_not_hold_any_more_are_taken_back() -> None:
    def leave_early(target: str) -> None:
        with Client(target) as client, client.session(max_open=1) as session:
            for event in session.submit("!hold a b"):
                assert isinstance(event, TextDelta)
                break
            assert session.submit("there is room", timeout_s=30.0).text() == "there is room"

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            await asyncio.to_thread(leave_early, live.grpc_target)
            await live.until_idle()

    asyncio.run(main())


def test_what_is_dropped_after_its_loop_is_closed_is_dropped_quietly() -> None:
    async def main() -> AsyncSessionOutputs:
        async with gateway_over_fake() as (_, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session:
                return await session.submit("!hold a b")

    outputs = asyncio.run(main())
    del outputs
    gc.collect()


def test_the_whole_of_an_output_without_credit_needs_no_grant() -> None:
    def blocking_one(target: str) -> None:
        with Client(target) as client, client.session() as session:
            assert session.submit("a b c", credit=0).text() == "a b c"

    async def main() -> None:
        async with gateway_over_fake() as (_, live), AsyncClient(live.grpc_target) as client:
            async with client.session() as session, asyncio.timeout(30):
                assert await (await session.submit("a b c", credit=0)).text() == "a b c"
                outputs = await (await session.submit("a b", credit=0, num_choices=2)).outputs()
                assert [output.text for output in outputs] == ["a b", "a b"]
            await asyncio.wait_for(asyncio.to_thread(blocking_one, live.grpc_target), 30)

    asyncio.run(main())


def test_a_session_that_nobody_holds_any_more_gives_its_connection_back() -> None:
    def leave(target: str) -> None:
        with Client(target) as client:
            outputs = [client.session().submit("a b") for _ in range(3)]
            assert [each.text() for each in outputs] == ["a b"] * 3, "open as long as one can read"
            with pytest.warns(ResourceWarning, match="was not closed"):
                del outputs
                gc.collect()
            with client.session() as session:
                assert session.submit("a b").text() == "a b"

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            await asyncio.to_thread(leave, live.grpc_target)
            await until(lambda: not live.server.service._sessions)

    asyncio.run(main())
