"""The listener's connection, with a way around ASGI for streamed answers: text goes straight into its transport.

uvicorn parses requests, keeps time and writes heads and ends. In between, one task switch, one coroutine and one
dictionary per token are what this way saves. Knows nothing of what is written.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

EXTENSION = "tokenwire.connection"
"""Where the connection is found in an ASGI scope's extensions."""
CHUNKED = b"transfer-encoding: chunked\r\n"
MAX_LATER = 32
"""Pieces that wait for one write: a client that does not keep up must be noticed within a frame."""


def _nothing() -> None:
    """What happens where nobody listens."""


class Batch:
    """Connections with something to write once what runs now on the event loop has run, in one write each."""

    def __init__(self) -> None:
        self._waiting: list[Connection] = []

    def add(self, connection: "Connection") -> None:
        """Have it flushed."""
        waiting = self._waiting
        if not waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            try:
                connection.flush()
            except Exception:  # this connection's alone
                log.exception("a connection could not be written to")
                connection.transport.abort()


class _Answer:
    """The transport as uvicorn has it that writes an answer: its head goes with the first of its body."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.write_later(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        self._connection.flush()
        self._connection.transport.close()


class _AnswerWithoutChunks(_Answer):
    """The same for a client of HTTP/1.0, which knows no chunks: without a length, the connection ends the answer."""

    def __init__(self, connection: "Connection") -> None:
        super().__init__(connection)
        self._begun = self._in_chunks = False

    def write(self, data: bytes) -> None:
        if not self._begun:
            self._begun, self._in_chunks = True, CHUNKED in data
            data = data.replace(CHUNKED, b"", 1)
        elif self._in_chunks:
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size or b"0", 16)]
        super().write(data)


class _Gone(asyncio.Transport):
    """The transport of a connection that is over: what is still written is dropped. uvloop's own raises then."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


_GONE = _Gone()


class Connection(HttpToolsProtocol):
    """uvicorn's own, which tells whoever writes an answer when it can go on, and when nobody reads it any more."""

    def __init__(self, *args: Any, batch: Batch, **kwargs: Any) -> None:
        """`batch`: flushes this connection with others."""
        super().__init__(*args, **kwargs)
        self._batch = batch
        self.in_chunks = True
        """Whether the client knows chunks. Of one that does not, the first request is the last."""
        self.later: list[bytes] = []
        """What waits for the flush."""
        self.on_writable: Callable[[], None] = _nothing
        """Called when what was paused may be written to again."""
        self.on_paused: Callable[[], None] = _nothing
        """Called when the client does not keep up."""
        self.on_gone: Callable[[], None] = _nothing
        """Called when the client has gone. Set by `watch`."""

    @property
    def certificate(self) -> Mapping[str, Any]:
        """The client's, as `ssl` tells of it; empty where it showed none."""
        found: Mapping[str, Any] = self.transport.get_extra_info("peercert") or {}
        return found

    @property
    def writable(self) -> bool:
        """Whether the client keeps up. What is written all the same is buffered."""
        return not self.flow.write_paused

    def write_chunk(self, body: bytes) -> None:
        """One piece of a body of unknown length. `body` is not empty."""
        self.flush()
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body) if self.in_chunks else body)

    def write_later(self, data: bytes) -> None:
        """Write this as it is, together with what else comes in this turn of the event loop.

        Nine tenths of a write are the kernel's, and the waking of whoever reads.
        """
        later = self.later
        if not later:
            self._batch.add(self)
        later.append(data)
        if len(later) >= MAX_LATER:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        later = self.later
        if later:
            self.later = []
            self.transport.write(later[0] if len(later) == 1 else b"".join(later))

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Tell when the client goes. Its request has been read; what it sends next waits in this process."""
        self.on_gone = on_gone
        self.see_the_end()
        if self.transport.is_closing():
            on_gone()

    def see_the_end(self) -> None:
        """Read on: a large body leaves reading paused, and then nobody sees that the client goes."""
        self.flow.resume_reading()

    def release(self) -> None:
        """The answer is over: nobody is told anything any more."""
        self.on_gone = self.on_paused = self.on_writable = _nothing

    def on_message_begin(self) -> None:
        """A request begins: it can find its connection."""
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """A head is there: its answer will be written here."""
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = (_Answer if self.in_chunks else _AnswerWithoutChunks)(self)  # type: ignore

    def on_response_complete(self) -> None:
        """An answer is whole: whatever comes now, the connection's end too, comes behind it."""
        self.flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self.on_paused()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        super().connection_lost(exc)
        self.transport = _GONE
        self.on_gone()


def connection_of(scope: Mapping[str, Any]) -> Connection:
    """The connection that a request came on."""
    found: Connection = scope["extensions"][EXTENSION]
    return found
