"""Servers that write server-sent events and do nothing else: the same answer from each, one tick for all streams.

    python sse_servers.py KIND PORT

Runs in the environment of the peers `http-servers`. KIND: uvicorn (ASGI), direct (uvicorn, with the gateway's way
around ASGI), aiohttp, granian (RSGI) or bare (an asyncio protocol that reads no HTTP). $SSE_STEP_MS 0 ticks as often as
the loop turns; $SSE_TOKENS is the length of an answer. Every kind waits for its tick as it would for a frame of tokens.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

STEP_S, NUM_TOKENS = float(os.environ.get("SSE_STEP_MS", "0")) / 1000, int(os.environ.get("SSE_TOKENS", "64"))
"""For granian, whose workers import this module."""
CHUNK = (
    b'data: {"id":"chatcmpl-000000000000000000000000","object":"chat.completion.chunk","created":1700000000,"model":'
    b'"smollm2-135m-instruct","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],'
    b'"usage":null}\n\n'
)
END = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def end() -> bytes:
    """What follows the last token."""
    return END % NUM_TOKENS


class Ticks:
    """Calls everyone who listens once a tick, while there is anyone."""

    def __init__(self) -> None:
        self.listeners: dict[Callable[[], None], None] = {}
        self._due_s = 0.0
        self._running = False

    def add(self, listener: Callable[[], None]) -> None:
        """From the next tick on."""
        self.listeners[listener] = None
        if not self._running:
            self._running, self._due_s = True, time.monotonic()
            self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if STEP_S:
            self._due_s = max(self._due_s, time.monotonic() - STEP_S) + STEP_S
            loop.call_at(self._due_s, self._tick)
        else:
            loop.call_soon(self._tick)

    def _tick(self) -> None:
        for listener in list(self.listeners):
            listener()
        self._running = bool(self.listeners)
        if self._running:
            self._schedule()


TICKS = Ticks()


class Reader:
    """A task's view of the ticks: how many have come since it last looked."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._listener = self._on_tick  # one object, to be taken out again
        self._num_ticks = 0
        TICKS.add(self._listener)

    async def next(self) -> int:
        """Wait for a tick; the ticks since the last one."""
        while not self._num_ticks:
            self._event.clear()
            await self._event.wait()
        found, self._num_ticks = self._num_ticks, 0
        return found

    def close(self) -> None:
        """No more."""
        TICKS.listeners.pop(self._listener, None)

    def _on_tick(self) -> None:
        self._num_ticks += 1
        self._event.set()


async def chunks(write: Callable[[bytes], Any]) -> None:
    """Write an answer, a piece for every tick."""
    reader, left = Reader(), NUM_TOKENS
    try:
        while left > 0:
            number = min(await reader.next(), left)
            left -= number
            await write(CHUNK * number)
    finally:
        reader.close()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn, as ASGI has it."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})

    async def write(data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    await chunks(write)
    await send({"type": "http.response.body", "body": end(), "more_body": False})


async def around_asgi(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn, head and end by ASGI, and what lies between from within the tick."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    connection = scope["extensions"]["tokenwire.connection"]
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = NUM_TOKENS

    def on_tick() -> None:
        nonlocal left
        connection.write_chunk(CHUNK)
        left -= 1
        if not left:
            TICKS.listeners.pop(on_tick)
            over.set_result(None)

    TICKS.add(on_tick)
    await over
    await send({"type": "http.response.body", "body": end(), "more_body": False})


async def __rsgi__(scope: Any, protocol: Any) -> None:  # noqa: N807  (granian's name for it)
    await protocol()
    transport = protocol.response_stream(200, [(name.decode(), value.decode()) for name, value in HEADERS])
    await chunks(transport.send_bytes)
    await transport.send_bytes(end())


class Bare(asyncio.Protocol):
    """Whatever comes with a whole body is a request."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = b""
        self.left = 0

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, _, body = self.data.partition(b"\r\n\r\n")
        if len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            self.data, self.left = b"", NUM_TOKENS
            lines = b"".join(b"%b: %b\r\n" % pair for pair in HEADERS)
            self.transport.write(b"HTTP/1.1 200 OK\r\n" + lines + b"transfer-encoding: chunked\r\n\r\n")
            self.listener = self.on_tick
            TICKS.add(self.listener)

    def on_tick(self) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
        self.left -= 1
        if not self.left:
            TICKS.listeners.pop(self.listener)
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end()), end()))


def serve_uvicorn(port: int, app: Any, protocol: Any) -> None:
    """Until the end."""
    import_module("uvicorn").run(
        app, host="127.0.0.1", port=port, http=protocol, loop="uvloop", lifespan="off", access_log=False,
        log_level="warning", server_header=False,
    )  # fmt: skip


def serve_aiohttp(port: int) -> None:
    """Until the end."""
    web = import_module("aiohttp.web")

    async def answer(request: Any) -> Any:
        await request.read()
        response = web.StreamResponse(headers={name.decode(): value.decode() for name, value in HEADERS})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await chunks(response.write)
        await response.write(end())
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    loop = import_module("uvloop").new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=loop)


def serve_granian(port: int) -> None:
    """Until the end."""
    constants = import_module("granian.constants")
    import_module("granian").Granian(
        "benchmarks.contenders.sse_servers:__rsgi__", address="127.0.0.1", port=port,
        interface=constants.Interfaces.RSGI, loop=constants.Loops.uvloop, workers=1, log_access=False,
    ).serve()  # fmt: skip


def serve_bare(port: int) -> None:
    """Until the end."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
        await server.serve_forever()

    import_module("uvloop").run(serve())


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "uvicorn":
        serve_uvicorn(port, asgi, "httptools")
    elif kind == "direct":
        serve_uvicorn(port, around_asgi, import_module("gateway.http.connection").Connection)
    elif kind == "aiohttp":
        serve_aiohttp(port)
    elif kind == "granian":
        serve_granian(port)
    else:
        serve_bare(port)


if __name__ == "__main__":
    main()
