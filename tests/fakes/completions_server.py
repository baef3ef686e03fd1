"""An HTTP server that streams completions as OpenAI's API does, and can be told to answer wrongly.

Each instance answers with `num_tokens` pieces whatever was asked for, unless that is None: then with as many as were
asked for. `counts` off leaves the usage out. Runs in a thread with a loop of its own; bodies are chunked, split at odd
places.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class CompletionsServer:
    num_tokens: int | None = None
    counts: bool = True
    status: int = 200
    cut: bool = False
    """Close the connection in the middle of the answer."""
    delay_s: float = 0.0
    """Before the first piece."""
    target: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.bodies.append(body)
                await self._answer(writer, body)
                if self.cut:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if self.status != 200:
            text = b'{"error": {"message": "not today"}}'
            writer.write(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (self.status, len(text)) + text)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        await asyncio.sleep(self.delay_s)
        num_tokens = body["max_tokens"] if self.num_tokens is None else self.num_tokens
        for number in range(num_tokens):
            await self._event(writer, {"choices": [{"text": f" {number}"}]})
            if self.cut:
                return
        if self.counts:
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": num_tokens}
            await self._event(writer, {"choices": [], "usage": usage})
        await self._send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    async def _event(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        await self._send(writer, b"data: " + json.dumps(event).encode() + b"\n\n")

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """As two chunks, and the second in two writes."""
        first, second = data[:7], data[7:]
        writer.write(b"%x\r\n" % len(first) + first + b"\r\n" + b"%x\r\n" % len(second) + second[:3])
        await asyncio.sleep(0.0005)
        writer.write(second[3:] + b"\r\n")


@contextmanager
def running_completions(**fields: Any) -> Iterator[CompletionsServer]:
    """A server on a free port of the loopback, stopped with the block."""
    fake = CompletionsServer(**fields)
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        fake.target = f"{host}:{port}"
        started.set()
        await stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
