"""A small HTTP/1.1 client for streamed answers: keep-alive connections, chunked bodies. Knows no API.

Written for its cost: the client shares the machine with the server it measures, and general clients take several times
the CPU per piece.
"""

import asyncio
from collections.abc import Callable
from typing import cast

MAX_HEAD_BYTES = 2**16


class BadAnswer(Exception):
    """What came is not an HTTP answer, or it ended early."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time. The body is handed on as it comes."""

    def __init__(self) -> None:
        self.status = 0
        self.reusable = True
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._in_head = True
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body or of this chunk still to come; None: until the connection ends, or a size line is due."""
        self._on_body: Callable[[bytes], None] = lambda _: None
        self._ended: asyncio.Future[None] | None = None

    def request(self, data: bytes, on_body: Callable[[bytes], None]) -> asyncio.Future[None]:
        """Send a whole request. The future is done when the answer has ended; `status` is set before the first body."""
        if self._transport is None or self._transport.is_closing():
            raise BadAnswer("the server closed the connection")
        self._on_body, self._in_head, self._chunked, self._left = on_body, True, False, None
        self._buffer.clear()
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._ended

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if self._ended is None or self._ended.done():
            return
        if not self._in_head and not self._chunked and self._left is None:
            self._ended.set_result(None)  # a body without a length ends with its connection
        else:
            self._ended.set_exception(BadAnswer(f"the connection ended within an answer ({error or 'closed'})"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if not self._in_head or self._read_head():
                self._read_body()
        except (BadAnswer, ValueError) as error:
            self._fail(BadAnswer(str(error)))

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadAnswer("the head of the answer has no end")
            return False
        head = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, status, *_ = head[0].split(" ")
        if not version.startswith("HTTP/1."):
            raise BadAnswer(f"not HTTP/1: {head[0]!r:.80}")
        self.status = int(status)
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        self._chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        if not self._chunked and "content-length" in fields:
            self._left = int(fields["content-length"])
        self.reusable = fields.get("connection", "").lower() != "close"
        self._in_head = False
        return True

    def _read_body(self) -> None:
        if self._chunked:
            pieces, ended = self._chunks()
            body = b"".join(pieces)
        else:
            body, self._buffer = bytes(self._buffer), bytearray()
            if self._left is not None:
                self._left -= len(body)
            ended = self._left is not None and self._left <= 0
        if body:
            self._on_body(body)
        if ended:
            self._end()

    def _chunks(self) -> tuple[list[bytes], bool]:
        """The whole chunks in the buffer, which lose their place there, and whether the last one was the end."""
        pieces: list[bytes] = []
        while True:
            if self._left is None:
                line_end = self._buffer.find(b"\r\n")
                if line_end < 0:
                    return pieces, False
                size = int(self._buffer[:line_end].split(b";")[0], 16)
                if size == 0:  # no trailers: none of these servers sends any
                    return pieces, self._buffer[line_end : line_end + 4] == b"\r\n\r\n"
                del self._buffer[: line_end + 2]
                self._left = size
            if len(self._buffer) < self._left + 2:
                return pieces, False
            pieces.append(bytes(self._buffer[: self._left]))
            del self._buffer[: self._left + 2]
            self._left = None

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: BadAnswer) -> None:
        self.reusable = False
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)
        self.close()


class ConnectionPool:
    """Idle connections to one server; as many as there are requests side by side."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[Connection] = []

    async def post(
        self, path: str, body: bytes, on_body: Callable[[bytes], None], content_type: str = "application/json"
    ) -> int:
        """One POST; returns the status once the answer has ended. Raises BadAnswer and OSError."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: {content_type}\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection = await self._take()
        try:
            await connection.request(head.encode() + body, on_body)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return connection.status

    def close(self) -> None:
        """Cut all idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return made
