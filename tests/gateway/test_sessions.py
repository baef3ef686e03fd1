import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.fakes.live_gateway import gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tokenwire.errors import AlreadyExists, FailedPrecondition, InvalidRequest, Overloaded
from tokenwire.requests import CancelReason, FinishReason, Terminal
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import terminal_from_wire


class Peer:
    """A text session spoken by hand, and everything that came back."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.hello: Any = None
        self.texts: dict[int, str] = {}
        self.terminals: dict[int, Terminal] = {}
        self.gateway_us: dict[int, int] = {}
        self.drain: Any = None

    async def send(self, **fields: Any) -> None:
        await self.call.write(tokenizer_pb2.SessionRequest(**fields))

    async def submit(
        self,
        handle: int,
        text: str,
        *,
        credit: int | None = None,
        n: int = 0,
        request_id: str = "",
        timeout_ms: int | None = None,
    ) -> None:
        context = pb.RequestContext(request_id=request_id, timeout_ms=timeout_ms)
        request = tokenizer_pb2.TextRequest(text=text, context=context)
        if n:
            request.options.num_choices = n
        submit = tokenizer_pb2.Submit(handle=handle, request=request)
        if credit is not None:
            submit.initial_credit = credit
        await self.send(submits=[submit])

    async def read(self) -> bool:
        async with asyncio.timeout(10):
            frame = await self.call.read()
        if frame is grpc.aio.EOF:
            return False
        for handle, text in zip(frame.handles, frame.texts, strict=True):
            assert handle not in self.terminals, "text after the terminal event"
            self.texts[handle] = self.texts.get(handle, "") + text
        for finish in frame.finishes:
            assert finish.handle not in self.terminals, "a second terminal event"
            self.terminals[finish.handle] = terminal_from_wire(finish)
            self.gateway_us[finish.handle] = finish.timings.gateway.total_us
        if frame.HasField("drain"):
            self.drain = frame.drain
        return True

    async def until(self, condition: Any) -> None:
        while not condition():
            assert await self.read(), "the session ended"

    async def end(self, handle: int) -> Terminal:
        await self.until(lambda: handle in self.terminals)
        return self.terminals[handle]


@asynccontextmanager
async def session(**settings: Any) -> AsyncIterator[tuple[Any, Any, Peer]]:
    async with gateway_over_fake(**settings) as (tier, live):
        peer = Peer(live.stub.Session())
        await peer.send(hello=pb.Hello(protocol_version=1))
        peer.hello = (await peer.call.read()).hello
        yield tier, live, peer
        peer.call.cancel()


def test_many_requests_on_one_stream() -> None:
    async def main() -> None:
        async with session() as (tier, live, peer):
            assert [card.name for card in peer.hello.models] == [MODEL]
            assert peer.hello.protocol_version == 1 and peer.hello.epoch
            for handle in range(1, 61, 2):
                await peer.submit(handle, f"{handle} of many", n=2)
            for handle in range(1, 61):
                terminal = await peer.end(handle)
                assert terminal.reason is FinishReason.STOP_TOKEN and terminal.usage.completion_tokens == 3
                assert peer.texts[handle] == f"{handle - 1 + handle % 2} of many" and peer.gateway_us[handle] > 0
            await live.until_idle()
            assert live.count("grpc.session", "ok") == 30

    asyncio.run(main())


def test_a_duplicate_request_id_ends_that_handle_alone() -> None:
    async def main() -> None:
        async with session() as (tier, _, peer):
            await peer.submit(1, "!step first goes on", request_id="same")
            await tier.until(lambda: tier.num_running == 1)
            await peer.submit(2, "second", request_id="same", n=2)
            for handle in (2, 3):
                assert type((await peer.end(handle)).error) is AlreadyExists
            while 1 not in peer.terminals:
                tier.step()
                await peer.read()
            assert peer.texts == {1: "first goes on"}
            await peer.submit(9, "free again", request_id="same")
            assert (await peer.end(9)).reason is FinishReason.STOP_TOKEN

    asyncio.run(main())


def test_bad_requests_end_their_own_handles() -> None:
    async def main() -> None:
        async with session() as (_, live, peer):
            await peer.submit(1, "")
            await peer.submit(2, "!bad")
            await peer.submit(3, "x", request_id="y" * 200)
            await peer.submit(4, "x", n=1000)
            await peer.submit(5, "fine")
            fields = {}
            for handle in range(1, 5):
                error = (await peer.end(handle)).error
                assert type(error) is InvalidRequest
                fields[handle] = error.violations[0].field
            expected = {1: "text", 2: "options.stop.max_tokens", 3: "context.request_id", 4: "options.num_choices"}
            assert fields == expected
            assert (await peer.end(5)).reason is FinishReason.STOP_TOKEN
            await live.until(lambda: live.count("grpc.session", "invalid_argument") == 4)

    asyncio.run(main())


@pytest.mark.parametrize("second", [5, 4, 0])
def test_a_handle_that_does_not_grow_ends_the_session(second: int) -> None:
    async def main() -> None:
        async with session() as (tier, live, peer):
            await peer.submit(5, "!hang")
            await tier.until(lambda: tier.num_running == 1)
            await peer.submit(second, "again")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await peer.read():
                    pass
            assert from_rpc_error(caught.value).reason == "HANDLE_ORDER"
            await tier.until(lambda: tier.num_running == 0)
            await live.until_idle()

    asyncio.run(main())


def test_credit_holds_text_back_and_slows_nobody_else() -> None:
    async def main() -> None:
        async with session() as (tier, live, peer):
            await peer.submit(1, "!step a b c d", credit=2)
            await tier.until(lambda: tier.num_running == 1)
            while live.server.backends.num_open:
                tier.step()
                await asyncio.sleep(0.01)
            await peer.submit(2, "free as ever")
            await peer.end(2)
            await peer.until(lambda: peer.texts.get(1) == "a b")
            await peer.send(credits=[pb.Credit(handle=1, tokens=1)])
            await peer.until(lambda: peer.texts[1] == "a b c")
            assert 1 not in peer.terminals
            await peer.send(credits=[pb.Credit(handle=1, tokens=100)])
            assert (await peer.end(1)).reason is FinishReason.STOP_TOKEN
            assert peer.texts[1] == "a b c d"

    asyncio.run(main())


@pytest.mark.parametrize("settings", [{}, {"default_timeout_s": 1.5}])
def test_what_was_generated_whole_waits_for_credit_until_its_time_is_over(settings: dict[str, float]) -> None:
    async def main() -> None:
        async with session(**settings) as (_, live, peer):
            timeout_ms = None if settings else 1500
            await peer.submit(1, "a b c d", credit=2, timeout_ms=timeout_ms)
            await peer.submit(2, "e f", credit=2, timeout_ms=timeout_ms)
            assert (await peer.end(2)).reason is FinishReason.STOP_TOKEN
            terminal = await peer.end(1)
            assert terminal.reason is FinishReason.DEADLINE and peer.texts == {1: "a b", 2: "e f"}
            assert terminal.usage.completion_tokens == 4 and terminal.stop_token_id is None

    asyncio.run(main())


def test_cancel_while_running_and_while_held_for_credit() -> None:
    async def main() -> None:
        async with session() as (tier, live, peer):
            await peer.submit(1, "!hold a b")
            await peer.until(lambda: peer.texts.get(1) == "a")
            await peer.submit(2, "held back", credit=0)
            await live.until(lambda: live.count("grpc.session", "ok") == 1)
            await peer.send(cancels=[pb.Cancel(handle=handle) for handle in (1, 2, 77)])
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            assert (await peer.end(2)).reason is FinishReason.CANCELLED
            assert 2 not in peer.texts
            await tier.until(lambda: tier.cancels == [CancelReason.CLIENT])
            await live.until_idle()

    asyncio.run(main())


def test_a_request_that_is_taken_back_gives_its_id_free_in_the_same_frame() -> None:
    async def run() -> None:
        async with session() as (tier, live, peer):
            await peer.submit(1, "!hold a b", request_id="mine")
            await peer.until(lambda: peer.texts.get(1))
            request = tokenizer_pb2.TextRequest(text="again", context=pb.RequestContext(request_id="mine"))
            submit = tokenizer_pb2.Submit(handle=2, request=request)
            await peer.send(submits=[submit], cancels=[pb.Cancel(handle=1), pb.Cancel(handle=9)])
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            assert (await peer.end(2)).reason is FinishReason.STOP_TOKEN and peer.texts[2] == "again"
            await peer.send(cancels=[pb.Cancel(handle=3)], submits=[tokenizer_pb2.Submit(handle=3, request=request)])
            assert (await peer.end(3)).reason is FinishReason.CANCELLED, "a Cancel of a Submit of its own frame"
            await live.until_idle()
            assert tier.cancels == [CancelReason.CLIENT, CancelReason.CLIENT]

    asyncio.run(run())


def test_a_request_holds_its_id_until_each_choice_was_taken_back_or_its_end_was_sent() -> None:
    async def main() -> None:
        async with session() as (tier, live, peer):
            await peer.submit(1, "!hang", n=2, request_id="mine")
            await tier.until(lambda: tier.num_running == 2)
            await peer.send(cancels=[pb.Cancel(handle=1)])
            assert (await peer.end(1)).reason is FinishReason.CANCELLED
            await peer.submit(3, "again", request_id="mine")
            assert type((await peer.end(3)).error) is AlreadyExists, "one of its choices runs"
            request = tokenizer_pb2.TextRequest(text="a b", context=pb.RequestContext(request_id="mine"))
            submit = tokenizer_pb2.Submit(handle=4, request=request, initial_credit=1)
            await peer.send(cancels=[pb.Cancel(handle=2)], submits=[submit])
            await peer.until(lambda: peer.texts.get(4) == "a")
            await live.until_idle()
            await peer.submit(5, "again", request_id="mine")
            assert type((await peer.end(5)).error) is AlreadyExists, "its end waits for credit"
            await peer.send(credits=[pb.Credit(handle=4, tokens=1)])
            assert (await peer.end(4)).reason is FinishReason.STOP_TOKEN
            await peer.submit(6, "again", request_id="mine", credit=0)
            await live.until(lambda: live.count("grpc.session", "ok") == 2)
            await peer.send(cancels=[pb.Cancel(handle=6)])
            await peer.submit(7, "again", request_id="mine")
            assert (await peer.end(6)).reason is FinishReason.CANCELLED
            assert (await peer.end(7)).reason is FinishReason.STOP_TOKEN

    asyncio.run(main())


def test_a_session_that_breaks_takes_its_requests_back() -> None:
    async def main() -> None:
        async with session() as (tier, live, peer):
            await peer.submit(1, "!hang", n=3)
            await tier.until(lambda: tier.num_running == 3)
            peer.call.cancel()
            await tier.until(lambda: len(tier.cancels) == 3 and tier.num_running == 0)
            await live.until_idle()
            assert live.count("grpc.session", "cancelled") == 1

    asyncio.run(main())


def test_half_closing_lets_what_runs_finish() -> None:
    async def main() -> None:
        async with session() as (tier, _, peer):
            await peer.submit(1, "!step a b")
            await peer.call.done_writing()
            await tier.until(lambda: tier.num_running == 1)

            async def steps() -> None:
                while True:
                    tier.step()
                    await asyncio.sleep(0.002)

            stepping = asyncio.ensure_future(steps())
            while await peer.read():
                pass
            stepping.cancel()
            assert peer.texts[1] == "a b" and peer.terminals[1].reason is FinishReason.STOP_TOKEN
            assert await peer.call.code() is grpc.StatusCode.OK

    asyncio.run(main())


@pytest.mark.parametrize(("own", "tiers", "said"), [(9, (7, 5), 5), (4, (7, 5), 4), (9, (0, 0), 9), (9, (0, 7), 7)])
def test_hello_says_what_the_gateway_and_each_tokenizer_tier_take(own: int, tiers: tuple[int, int], said: int) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier(max_requests=tiers[0]) as one, fake_tokenizer_tier(max_requests=tiers[1]) as two:
            async with live_gateway(one, two, max_concurrent_requests=own) as live:
                await live.until(lambda: all(backend.ready for backend in live.server.backends.tiers))
                peer = Peer(live.stub.Session())
                await peer.send(hello=pb.Hello(protocol_version=1))
                assert (await peer.call.read()).hello.max_requests == said
                peer.call.cancel()

    asyncio.run(main())


def test_a_client_that_grants_nothing_cannot_pile_up_sequences() -> None:
    async def main() -> None:
        async with session(max_concurrent_requests=2) as (_, live, peer):
            for handle in (1, 2):
                await peer.submit(handle, "held", credit=0)
                await live.until(lambda n=handle: live.count("grpc.session", "ok") == n)
            await peer.submit(3, "one more")
            error = (await peer.end(3)).error
            assert type(error) is Overloaded and error.reason == "READER_TOO_SLOW"

    asyncio.run(main())


def test_a_submit_of_more_choices_than_the_gateway_takes_is_refused() -> None:
    async def main() -> None:
        async with session(max_concurrent_requests=2) as (tier, _, peer):
            await peer.submit(1, "a", n=3)
            error = (await peer.end(1)).error
            assert type(error) is InvalidRequest
            assert [v.field for v in error.violations] == ["options.num_choices"] and tier.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("hello", "kind"), [(pb.Hello(protocol_version=2), FailedPrecondition), (None, InvalidRequest)]
)
def test_a_session_begins_with_a_hello_of_this_protocol(hello, kind) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            call = live.stub.Session()
            await call.write(tokenizer_pb2.SessionRequest(hello=hello))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert type(from_rpc_error(caught.value)) is kind

    asyncio.run(main())


def test_a_draining_gateway_says_so_and_lets_the_session_run_out() -> None:
    async def main() -> None:
        async with session(drain_timeout_s=20) as (tier, live, peer):
            await peer.submit(1, "!step a b")
            await tier.until(lambda: tier.num_running == 1)
            draining = asyncio.ensure_future(live.server.drain())
            await peer.until(lambda: peer.drain is not None)
            assert peer.drain.grace_ms == 20_000
            await peer.submit(2, "crossed with it")
            assert (await peer.end(2)).reason is FinishReason.STOP_TOKEN
            while 1 not in peer.terminals:
                tier.step()
                await peer.read()
            assert peer.terminals[1].reason is FinishReason.STOP_TOKEN
            assert not await peer.read()
            await draining

    asyncio.run(main())
