"""Sessions of the Python client with servers that are silent, slow or send more than was granted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.fakes.loopback import on_loopback
from tokenwire.client import AsyncClient, Client, TextDelta
from tokenwire.client.messages import DEADLINE_GRACE_S
from tokenwire.errors import DeadlineExceeded, Internal
from tokenwire.v1 import common_pb2, tokenizer_pb2


async def say_hello(context: Any) -> None:
    await context.write(tokenizer_pb2.SessionResponse(hello=common_pb2.Hello(protocol_version=1)))


async def silent(requests: Any, context: Any) -> None:
    """A server's session that says Hello and nothing else."""
    await say_hello(context)
    await asyncio.Event().wait()


async def mute(requests: Any, context: Any) -> None:
    """One that does not even say Hello."""
    await asyncio.Event().wait()


async def patient(requests: Any, context: Any) -> None:
    """One that sends a token for each that is granted, of three; then the end."""
    await say_hello(context)
    sent = 0
    async for frame in requests:
        handles = [each.handle for each in (*frame.submits, *frame.credits)]
        granted = sum(each.initial_credit for each in frame.submits) + sum(each.tokens for each in frame.credits)
        if granted:
            words = ["a", " b", " c"][sent : sent + granted]
            sent += len(words)
            finishes = [common_pb2.Finish(handle=handles[0], reason=common_pb2.FINISH_REASON_LENGTH)] * (sent == 3)
            await context.write(
                tokenizer_pb2.SessionResponse(
                    handles=handles[:1], texts=["".join(words)], num_tokens=[len(words)], finishes=finishes
                )
            )


async def overrun(requests: Any, context: Any) -> None:
    """Sends each request 100 tokens at once."""
    await say_hello(context)
    async for frame in requests:
        handles = [submit.handle for submit in frame.submits]
        tokens = [100] * len(handles)
        await context.write(
            tokenizer_pb2.SessionResponse(handles=handles, texts=["a"] * len(handles), num_tokens=tokens)
        )


def test_more_tokens_than_were_granted_end_the_stream() -> None:
    async def main() -> None:
        async with server_whose_sessions(overrun) as target, AsyncClient(target) as client, client.session() as session:
            other = await session.submit("a")
            assert (await anext(other)) == TextDelta("a", 100)
            over = await session.submit("b", credit=99)
            for outputs in (over, other):
                with pytest.raises(Internal) as caught:
                    await outputs.text()
                assert caught.value.reason == "CREDIT_EXCEEDED"
            assert (await anext(await session.submit("c", credit=100))) == TextDelta("a", 100)

    asyncio.run(main())


@asynccontextmanager
async def server_whose_sessions(behaviour: Any) -> AsyncIterator[str]:
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        behaviour, tokenizer_pb2.SessionRequest.FromString, tokenizer_pb2.SessionResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tokenwire.v1.GenerationService", {"Session": handler})]
    )
    async with on_loopback(server) as address:
        yield address


def test_time_ends_a_request_whatever_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.client.session_core.DEADLINE_GRACE_S", 0.2)

    def blocking_one(target: str) -> None:
        with Client(target) as client, client.session(max_open=1) as session:
            for _ in range(2):
                with pytest.raises(DeadlineExceeded):
                    session.submit("a", timeout_s=0.3).text()

    async def main() -> None:
        for behaviour, told in ((silent, "said nothing"), (mute, "waited for a connection")):
            async with server_whose_sessions(behaviour) as target, AsyncClient(target) as client:
                async with client.session(max_open=2) as session, asyncio.timeout(30):
                    for _ in range(2):
                        with pytest.raises(DeadlineExceeded, match=told):
                            await (await session.submit("a", num_choices=2, timeout_s=0.3)).outputs()
                    with pytest.raises(DeadlineExceeded, match=told):
                        await anext(await session.submit("a", credit=0, timeout_s=0.3))
                    assert session._core._num_open == 0
                await asyncio.wait_for(asyncio.to_thread(blocking_one, target), 30)

    asyncio.run(main())


def test_a_reader_that_takes_its_time_is_no_silence_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with server_whose_sessions(patient) as target, AsyncClient(target) as client:
            async with client.session() as session, asyncio.timeout(30):
                outputs = await session.submit("a", credit=1, timeout_s=0.2)
                await asyncio.sleep(DEADLINE_GRACE_S + 1.0)
                assert await outputs.text() == "a b c"
            async with client.session() as session, asyncio.timeout(30):
                outputs = await session.submit("a", credit=2, timeout_s=0.2)
                monkeypatch.setattr(outputs._stream, "credit", lambda *_: None)  # it never hears of it
                assert await anext(outputs) == TextDelta("a b", 2)
                with pytest.raises(DeadlineExceeded, match="said nothing"):
                    await outputs.text()

    asyncio.run(main())
