"""A TCP proxy that stands between two tiers and spoils what passes. Knows bytes and connections, not what they say."""

import asyncio
import os
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536
LOOK_AGAIN_S = 0.02
"""How often what is held looks whether it may go on."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST."""


@dataclass
class Proxy:
    """`async with Proxy(port_behind)`. What it does to the traffic may be set at any time, from any thread."""

    target_port: int
    held: bool = False
    """A black hole: connections stay, nothing passes; once it ends, what was held goes on, as after a partition."""
    refuses: bool = False
    """New connections are reset."""
    resets: bool = False
    """Open connections are reset, once."""
    delay_s: float = 0.0
    """How much later each piece passes on; the order stays."""
    bytes_per_s: float = 0.0
    """0: as fast as it goes."""
    garbage: bool = False
    """What the target says is replaced by random bytes."""
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def heal(self) -> None:
        """Pass everything on as it comes."""
        self.held = self.refuses = self.resets = self.garbage = False
        self.delay_s = self.bytes_per_s = 0.0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._spawn(self._reset_when_told())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reset_when_told(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            if self.resets:
                self.resets = False
                for writer in list(self._writers):
                    reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            reset(writer)
            return
        try:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            reset(writer)
            return
        self._writers |= {writer, behind_writer}
        self._spawn(self._pump(reader, behind_writer, spoils=False))
        self._spawn(self._pump(behind_reader, writer, spoils=True))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, spoils: bool) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                while self.held:
                    await asyncio.sleep(LOOK_AGAIN_S)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._pass_on(writer, os.urandom(len(data)) if spoils and self.garbage else data)
            while self.held:
                await asyncio.sleep(LOOK_AGAIN_S)
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass_on(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            size = max(1, int(self.bytes_per_s * LOOK_AGAIN_S)) if self.bytes_per_s else len(data)
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]
            if data:
                await asyncio.sleep(LOOK_AGAIN_S)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
