"""HTTP by raw sockets, for what no client library would send."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.fakes.live_gateway import LiveGateway
from tokenwire.tasks import cancel_and_wait

BODY = b'{"messages": [{"role": "user", "content": "a b"}]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
STREAM = {"messages": [{"role": "user", "content": "!hold a b"}], "stream": True}
CLOSE = b"Connection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@contextlib.asynccontextmanager
async def connected(live: LiveGateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection, closed for good with the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.server.http.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def dripping(writer: asyncio.StreamWriter, data: bytes) -> AsyncIterator[None]:
    """While the block runs these bytes come again and again, one by one."""

    async def drip() -> None:
        while True:
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

    task = asyncio.ensure_future(drip())
    try:
        yield
    finally:
        await cancel_and_wait(task)


async def exchange(live: LiveGateway, data: bytes, *, half_close: bool = False) -> bytes:
    """Send, and read until the other side closes."""
    async with connected(live) as (reader, writer):
        try:
            writer.write(data)
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(10):
                return await reader.read(-1)
        except ConnectionResetError:
            return b""


async def check_well(live: LiveGateway) -> None:
    """The next client is served, and nobody's request is left."""
    response = await live.http.post("/v1/chat/completions", content=BODY, headers={"content-type": "application/json"})
    assert response.status_code == 200
    await live.until_idle()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    found: dict[str, Any] = json.loads(body)["error"]
    return found
