"""One call's answer on its way to a browser: whole, or message by message around ASGI. Does not know what is in it.

A piece that is streamed goes straight into the connection, as server-sent events do (`gateway.http.sse`). A client that
does not keep up is waited for.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Protocol

from starlette.types import Send

from gateway.http.connection import Connection
from gateway.http.sse import STREAM_HEADERS
from gateway.web.envelopes import envelope
from gateway.web.status import CallStatus

Headers = list[tuple[bytes, bytes]]


class Answer(Protocol):
    """What a call answers. `begin` and `message` may come or not, `end` comes once."""

    async def begin(self, metadata: Iterable[tuple[str, str]]) -> None:
        """What is known before the first message."""

    async def message(self, payload: bytes) -> None:
        """One message."""

    async def end(self, status: CallStatus | None) -> None:
        """How it ended; None: well."""


class WholeAnswer:
    """One message, or an error with a status of HTTP's: nothing is sent before the end."""

    def __init__(
        self, send: Send, content_type: bytes, failure: Callable[[CallStatus], tuple[int, Headers, bytes]]
    ) -> None:
        """`failure`: status, headers and body of a call that does not end well."""
        self._send = send
        self._content_type = content_type
        self._failure = failure
        self._headers: Headers = []
        self._payload = b""

    async def begin(self, metadata: Iterable[tuple[str, str]]) -> None:
        """As Answer says."""
        self._headers += _headers_of(metadata)

    async def message(self, payload: bytes) -> None:
        """As Answer says."""
        self._payload = payload

    async def end(self, status: CallStatus | None) -> None:
        """As Answer says."""
        if status is None:
            http_status, headers, body = 200, [(b"content-type", self._content_type)], self._payload
        else:
            http_status, headers, body = self._failure(status)
        headers = [*headers, (b"content-length", str(len(body)).encode()), *self._headers]
        await self._send({"type": "http.response.start", "status": http_status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class FramedAnswer:
    """Messages in envelopes, and how it ended in the last one."""

    def __init__(
        self,
        send: Send,
        connection: Connection,
        content_type: bytes,
        ending: Callable[[CallStatus | None], bytes],
        *,
        as_text: bool = False,
    ) -> None:
        """`ending`: the last envelope. `as_text`: everything is sent in base64, each piece by itself."""
        self._send = send
        self._connection = connection
        self._content_type = content_type
        self._ending = ending
        self._as_text = as_text
        self._begun = False

    async def begin(self, metadata: Iterable[tuple[str, str]]) -> None:
        """As Answer says. Sends the head, as gRPC does."""
        if self._begun:
            return
        self._begun = True
        headers = [(b"content-type", self._content_type), *STREAM_HEADERS, *_headers_of(metadata)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def message(self, payload: bytes) -> None:
        """As Answer says."""
        await self.begin(())
        self._connection.write_chunk(self._piece(envelope(0, payload)))
        if not self._connection.writable:
            await self._connection.flow.drain()

    async def end(self, status: CallStatus | None) -> None:
        """As Answer says."""
        await self.begin(())
        body = self._piece(self._ending(status))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _piece(self, data: bytes) -> bytes:
        return b64encode(data) if self._as_text else data


def _headers_of(metadata: Iterable[tuple[str, str]]) -> Headers:
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in metadata]
