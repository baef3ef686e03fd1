"""Connections that are told to go, and pings, over real channels: nothing is lost on the way to a new one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from tests.fakes.proxy import Proxy
from tests.tokenwire.test_session import Listener, Scripted, answering, hello, send, until
from tokenwire import session_server
from tokenwire.channels import (
    KEEPALIVE_TIME_MS,
    TierChannel,
    aio_channel,
    client_options,
    keepalive_options,
    outranked,
    server_options,
    told_to_move,
)
from tokenwire.session import SessionClient
from tokenwire.session_server import run_session
from tokenwire.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc

AGE_S = 0.4


class Aging:
    """A server whose connections age, and a session to it."""

    def __init__(self, client: SessionClient[str], listener: Listener, servicer: Scripted, peers: list[str]) -> None:
        self.client, self.listener, self.servicer = client, listener, servicer
        self.peers = peers
        """Of each stream, in order."""


def with_aging(
    behave: Callable[..., Any], check: Callable[[Aging], Awaitable[None]], *, hears: bool = True, **options: float
) -> None:
    async def main() -> None:
        peers: list[str] = []

        async def noting(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
            peers.append(context.peer())
            await behave(frames, context)

        servicer, listener = Scripted(noting), Listener()
        server = grpc.aio.server(options=server_options(2**20, **options))
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server)
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        link: TierChannel[Any] = TierChannel(target, tokenizer_pb2_grpc.TokenizerServiceStub, None)
        told = [link.told_to_move] if hears else []
        client: SessionClient[str] = SessionClient(
            target, lambda: link.refreshed().Session(), tokenizer_pb2.SessionRequest, listener, *told
        )
        client.start()
        try:
            await check(Aging(client, listener, servicer, peers))
        finally:
            await client.close()
            await link.close()
            await server.stop(None)

    asyncio.run(main())


def test_a_session_moves_to_new_connections_and_always_takes_requests() -> None:
    async def check(aging: Aging) -> None:
        await until(lambda: aging.client.stream)
        sent = 0
        while len(set(aging.peers)) < 4:
            send(aging.client, f"r{sent}")  # asserts that there is a stream
            sent += 1
            await asyncio.sleep(0.002)
        await until(lambda: len(aging.listener.finished) == sent)
        assert sorted(aging.listener.finished) == sorted(f"r{number}" for number in range(sent))
        assert all(not receivers for receivers, _ in aging.listener.lost)
        assert len(set(aging.peers)) == len(aging.peers), "each stream on a connection of its own"

    with_aging(answering, check, max_age_s=AGE_S)


def test_what_runs_ends_where_it_is_however_long_it_takes() -> None:
    may_end = asyncio.Event()

    async def waiting(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        async for frame in frames:
            for submit in frame.submits:
                if submit.handle == 1:
                    await may_end.wait()
                await context.write(tokenizer_pb2.SessionResponse(finishes=[common_pb2.Finish(handle=submit.handle)]))

    async def check(aging: Aging) -> None:
        await until(lambda: aging.client.stream)
        send(aging.client, "long")
        await until(lambda: len(aging.peers) >= 3)
        assert not aging.listener.finished and not any(receivers for receivers, _ in aging.listener.lost)
        may_end.set()
        await until(lambda: aging.listener.finished == ["long"])

    with_aging(waiting, check, max_age_s=AGE_S)


def test_after_the_grace_what_still_runs_is_cut_and_said_to_be_lost() -> None:
    async def silent(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await anext(frames)
        await context.write(hello())
        async for _ in frames:
            pass

    async def check(aging: Aging) -> None:
        await until(lambda: aging.client.stream)
        send(aging.client, "too long")
        await until(lambda: any(receivers for receivers, _ in aging.listener.lost))
        (receivers,) = [receivers for receivers, _ in aging.listener.lost if receivers]
        assert list(receivers.values()) == ["too long"]

    with_aging(silent, check, max_age_s=AGE_S, age_grace_s=AGE_S)


class Echo:
    """A server session that ends each submit at once, and what it was told."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Any] = asyncio.Queue()

    def hello(self) -> Any:
        return hello()

    def on_frame(self, frame: Any) -> None:
        for submit in frame.submits:
            finishes = [common_pb2.Finish(handle=submit.handle)]
            self.waiting.put_nowait(tokenizer_pb2.SessionResponse(finishes=finishes))

    def half_close(self) -> None:
        self.waiting.put_nowait(None)

    def drain(self, reason: str, grace_s: float) -> None:
        self.waiting.put_nowait(tokenizer_pb2.SessionResponse(drain=common_pb2.Drain(reason=reason)))

    async def next_frame(self) -> Any | None:
        return await self.waiting.get()

    def close(self) -> None:
        pass


def test_a_peer_that_does_not_hear_of_its_connection_is_told_in_its_session(monkeypatch: Any) -> None:
    monkeypatch.setattr(session_server, "TOLD_AFTER_S", 0.1)

    async def told(frames: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        await run_session(frames, context, Echo(), max_age_s=AGE_S)

    async def check(aging: Aging) -> None:
        await until(lambda: aging.client.stream)
        sent = 0
        while len(set(aging.peers)) < 3:
            if aging.client.stream is not None:
                send(aging.client, f"r{sent}")
                sent += 1
            await asyncio.sleep(0.005)
        await until(lambda: len(aging.listener.finished) == sent)
        assert len(set(aging.peers)) == len(aging.peers), "the connection was told before"

    with_aging(told, check, hears=False, max_age_s=AGE_S)


def test_a_channel_tells_when_its_connection_is_to_be_left_and_not_before() -> None:
    async def main() -> None:
        async def unary(request: bytes, context: Any) -> bytes:
            return context.peer().encode()

        handler = grpc.method_handlers_generic_handler("t", {"U": grpc.unary_unary_rpc_method_handler(unary)})
        server = grpc.aio.server(options=server_options(2**20, max_age_s=AGE_S))
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=client_options()) as channel:
            told = asyncio.ensure_future(told_to_move(channel))
            await asyncio.sleep(0.05)
            assert not told.done(), "there is no connection yet"
            call: Any = channel.unary_unary("/t/U")
            first = await call(b"")
            assert not told.done()
            async with asyncio.timeout(5):
                await told
            assert await call(b"") != first
            again = asyncio.ensure_future(told_to_move(channel))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await again  # a closed channel leaves nobody waiting
        await server.stop(None)

    asyncio.run(main())


async def pinged(server_extra: dict[str, int], seconds: float) -> tuple[bool, list[grpc.ChannelConnectivity]]:
    """Whether a silent stream outlives so many seconds of pings every 50 ms, and the states of its channel."""

    async def silent(requests: Any, context: Any) -> None:
        await context.write(b"hello")
        await asyncio.Event().wait()

    handler = grpc.method_handlers_generic_handler("t", {"S": grpc.stream_stream_rpc_method_handler(silent)})
    server = grpc.aio.server(options=list({**dict(server_options(2**20)), **server_extra}.items()))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    often = list({**dict(client_options()), "grpc.keepalive_time_ms": 50}.items())
    states: list[grpc.ChannelConnectivity] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=often) as channel:
        call: Any = channel.stream_stream("/t/S")()
        assert await call.read() == b"hello"
        reading = asyncio.ensure_future(call.read())
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends and not reading.done():
            states.append(channel.get_state())
            await asyncio.sleep(0.02)
        alive = not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await server.stop(None)
    return alive, states


def test_pings_of_a_client_never_cost_it_its_connection() -> None:
    async def main() -> None:
        alive, states = await pinged({}, 1.5)
        assert alive and set(states) == {grpc.ChannelConnectivity.READY}
        alive, states = await pinged({"grpc.http2.max_ping_strikes": 1}, 10)
        assert not alive, "a server that counts strikes ends such a connection: the pings were real"

    asyncio.run(main())


def test_both_sides_ping_no_more_often_than_the_other_welcomes() -> None:
    server, client = dict(server_options(2**20)), dict(client_options())
    assert client["grpc.keepalive_time_ms"] == server["grpc.keepalive_time_ms"] == KEEPALIVE_TIME_MS
    assert client["grpc.keepalive_time_ms"] >= server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert client["grpc.keepalive_permit_without_calls"] == server["grpc.keepalive_permit_without_calls"] == 1


def test_a_peer_that_is_silent_is_given_up_in_the_time_that_is_stated() -> None:
    async def main() -> None:
        server = grpc.aio.server(options=server_options(2**20))
        add_HealthServicer_to_server(health.HealthServicer(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        soon = keepalive_options(1000, 1000)
        async with Proxy(port) as proxy, aio_channel(proxy.target, options=soon) as channel:
            call: Any = HealthStub(channel).Watch(HealthCheckRequest())  # type: ignore[no-untyped-call]
            await call.read()
            proxy.held = True
            with pytest.raises(grpc.aio.AioRpcError, match="ping timeout"):
                async with asyncio.timeout(30):  # gRPC's own limit is a minute
                    await call.read()
            proxy.held = False
        await server.stop(None)

    asyncio.run(main())


def test_an_option_that_is_said_anew_is_said_once() -> None:
    assert outranked([("a", 1), ("b", 2)], [("a", 3)]) == [("b", 2), ("a", 3)]
