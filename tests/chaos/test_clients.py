"""Clients that vanish, do not read, read slowly, send half a message or far too many, beside others that behave."""

import asyncio
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest

from benchmarks.loadgen.http_stream import ConnectionPool
from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack
from tests.fakes.proxy import Proxy
from tokenwire.client import AsyncClient, AsyncStream
from tokenwire.errors import TokenwireError

SHORT, LONG = pytest.mark.extended, pytest.mark.chaos
NUM_CLIENTS = 100
NUM_STREAMS = 5000
FULL = frozenset({"TOO_MANY_REQUESTS", "QUEUE_FULL", "HELD_QUEUE_FULL", "ENCODE_QUEUE_FULL"})
LONG_BODY = json.dumps({"prompt": "Tell me all", "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def post(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + body


def connect(port: int) -> socket.socket:
    """With as little room for what is not read as the system allows."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.connect(("127.0.0.1", port))
    return connection


def http_port(stack: ChaosStack) -> int:
    return stack.http_port


def clients_that_send(
    sent: bytes,
    wait_s: float,
    meanwhile: Callable[[list[socket.socket]], object] = lambda _: None,
    port: Callable[[ChaosStack], int] = http_port,
) -> Callable[[ChaosStack], None]:
    """So many connections that send this and stay for a while, then are gone without a word."""

    def begin(stack: ChaosStack) -> None:
        connections = [connect(port(stack)) for _ in range(NUM_CLIENTS)]
        try:
            for connection in connections:
                connection.sendall(sent)
            ends_s = time.monotonic() + wait_s
            while time.monotonic() < ends_s:
                meanwhile(connections)
                time.sleep(1)
        finally:
            for connection in connections:
                connection.close()

    return begin


def read_one_byte(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.setblocking(False)
        try:
            connection.recv(1)
        except BlockingIOError:
            pass


def half_messages_over_grpc(stack: ChaosStack) -> None:
    """A preface and a frame that never ends, random bytes, nothing at all."""
    kinds = [HTTP2_PREFACE + b"\x00\x40\x00\x00", HTTP2_PREFACE + os.urandom(64), os.urandom(64), b"", b"\x16\x03\x01"]
    connections = [connect(stack.gateway_port) for _ in range(NUM_CLIENTS)]
    for number, connection in enumerate(connections):
        try:
            connection.sendall(kinds[number % len(kinds)])
        except OSError:
            pass  # refused at once, which is right too
    time.sleep(3)
    for connection in connections:
        connection.close()


def vanish_over_grpc(stack: ChaosStack) -> None:
    """Their connection is reset while everything streams."""

    async def main() -> None:
        async with Proxy(stack.gateway_port) as proxy, AsyncClient(proxy.target, max_attempts=1) as client:
            streams = [client.generate(f"Story {n}", max_tokens=4000, ignore_eos=True) for n in range(NUM_CLIENTS)]
            reading = [asyncio.ensure_future(ended(stream)) for stream in streams]
            await asyncio.sleep(2)
            proxy.resets = proxy.refuses = True
            assert set(await asyncio.gather(*reading)) == {"UNAVAILABLE"}

    asyncio.run(main())


async def ended(stream: AsyncStream) -> str:
    """How it ended: its finish reason, or its error's name."""
    try:
        (output,) = await stream.outputs()
    except TokenwireError as error:
        return error.reason
    return output.error.reason if output.error is not None else output.terminal.reason.name


def open_thousands_of_streams(stack: ChaosStack) -> None:
    """On one connection, more than the gateway lets in at once."""

    async def main() -> None:
        async with AsyncClient(stack.target, max_attempts=1) as client:
            streams = [client.generate("All at once", max_tokens=3, ignore_eos=True) for _ in range(NUM_STREAMS)]
            async with asyncio.timeout(120):
                ends = Counter(await asyncio.gather(*map(ended, streams)))
        assert ends.total() == NUM_STREAMS and set(ends) <= FULL | {"LENGTH"} and ends["LENGTH"], ends

    asyncio.run(main())


def open_thousands_of_http_streams(stack: ChaosStack) -> None:
    """On a connection each."""
    body = json.dumps({"prompt": "All at once", "max_tokens": 3, "ignore_eos": True, "stream": True}).encode()

    async def main() -> None:
        pool = ConnectionPool("127.0.0.1", stack.http_port)
        async with asyncio.timeout(120):
            asked = (pool.post("/v1/completions", body, lambda _: None) for _ in range(NUM_STREAMS))
            ends = Counter(await asyncio.gather(*asked))
        pool.close()
        assert ends.total() == NUM_STREAMS and set(ends) <= {200, 429} and ends[200], ends

    asyncio.run(main())


CLIENTS = [
    pytest.param(Fault("100 HTTP clients that never read for 5 s, then vanish", clients_that_send(post(LONG_BODY), 5)),
                 marks=SHORT),
    pytest.param(Fault("100 HTTP clients that read a byte a second for 10 s, then vanish",
                       clients_that_send(post(LONG_BODY), 10, read_one_byte)), marks=LONG),
    pytest.param(Fault("100 HTTP clients that send half a body, then vanish",
                       clients_that_send(post(LONG_BODY[:20], len(LONG_BODY)), 3)), marks=LONG),
    pytest.param(Fault("100 HTTP clients that send half a head, then vanish", clients_that_send(post(b"")[:30], 3)),
                 marks=LONG),
    pytest.param(Fault("100 gRPC connections with half a message, random bytes or nothing", half_messages_over_grpc),
                 marks=LONG),
    pytest.param(Fault("100 gRPC streams whose connection is reset", vanish_over_grpc), marks=SHORT),
    pytest.param(Fault("5,000 streams at once on one connection", open_thousands_of_streams, allowed=FULL,
                       serves_again_within_s=60), marks=LONG),
    pytest.param(Fault("5,000 streams at once over HTTP", open_thousands_of_http_streams, allowed=FULL,
                       serves_again_within_s=60), marks=LONG),
]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("fault", CLIENTS, ids=lambda fault: fault.name)
def test_the_stack_outlives(calm: ChaosStack, record: Record, fault: Fault) -> None:
    record.rows.append(asyncio.run(under_load(calm, fault)))
