"""The listener's connection, with bounds on what a client may send and how long that may take.

Heads are bounded in bytes, fields and time, bodies that are not whole in bytes together, connections in number and in
idle time; requests waiting behind another on one connection in number; a request that cannot be read is answered in
the shape of every error here, and its connection closed. How long a body may take is `gateway.http.body`'s business.
Knows no paths and no tiers.
"""

import asyncio
import http
import json
import math
import random
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools

from gateway.http.body_room import BodyRoom
from gateway.http.connection import Connection
from gateway.http.errors import HeadTooLarge, RequestTimeout, error_object, whole_seconds
from gateway.http.framing import ANNOUNCED, Framing
from gateway.http.heads import host_asked_for
from tokenwire.errors import InvalidRequest, TokenwireError, Unavailable

MAX_PIPELINED = 16
"""Requests that may wait behind one that is being answered."""
LINGER_S = 5.0
"""How long the rest of a body is thrown away after its request has been answered."""
RETRY_AFTER_S = 1.0
TOO_MANY_CONNECTIONS = "TOO_MANY_CONNECTIONS"
TOO_MANY_BODIES = "TOO_MANY_BODIES"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a connection may ask of the listener."""

    max_connections: int
    """Open at once, those that still shake hands for TLS among them."""
    max_header_bytes: int
    """Of a request line and its fields, those behind a body and the extensions of its chunks among them."""
    max_headers: int
    header_timeout_s: float
    """From the first byte of a head to its last; from the opening of a connection for its first one.

    The handshake of TLS, before that, has as much."""
    idle_timeout_s: float
    """Between requests."""
    max_age_s: float = 0.0
    """Of a connection, give or take a tenth: the answer to a request that comes later is its last. 0: any age."""
    max_unfinished_bytes: int = 256 * 2**20
    """Of bodies that are not whole yet, on all connections together."""


class GuardedConnection(Connection):
    """One client's connection."""

    def __init__(
        self,
        *args: Any,
        limits: HttpLimits,
        on_refused: Callable[[str], None],
        is_draining: Callable[[], bool],
        refuse_host: Callable[[bytes], None],
        bodies: BodyRoom,
        **kwargs: Any,
    ) -> None:
        """`on_refused`: told the reason of each request not let in. `is_draining`: every answer is its last.

        `refuse_host`: raises TokenwireError for a `Host` field that is not answered.
        `bodies`: what has come of bodies, on all connections together.
        """
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._on_refused = on_refused
        self._is_draining = is_draining
        self._refuse_host = refuse_host
        self._bodies = bodies
        self._body_bytes = 0
        """What has come of a body that is not whole."""
        age_s = limits.max_age_s * random.uniform(0.9, 1.1) or math.inf
        self._leaves_s = self.loop.time() + age_s
        """When it is to be left for a new one."""
        self._refusal: TokenwireError | None = None
        """What is wrong with the head that is being read."""
        self._in_head = False
        self._in_body = False
        self._framing = Framing()
        self._num_headers = 0
        self._again: bytes | None = None
        """The head that has been read, without the wish for another protocol, where it had one."""
        self._slow: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        most = self._limits.max_connections
        if len(self.connections) > most:
            self._refuse(
                Unavailable(
                    f"{most} connections are open, the most allowed (max_connections)",
                    reason=TOO_MANY_CONNECTIONS,
                    retry_after_s=RETRY_AFTER_S,
                )
            )
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        begin = 0
        while begin < len(data) and not self.transport.is_closing():
            announced = self._framing.announced.num_bytes
            end = self._framing.part(data, begin)
            if self._framing.num_head_bytes > self._limits.max_header_bytes:
                self._refuse(self._too_large())
                return
            self._feed(data[begin:end])
            if self._in_body and self._framing.announced.num_bytes != announced:
                self.cycle.message_event.set()  # whoever waits for the body may refuse it now
            begin = end
        if self.transport.is_closing():
            return
        if not self._in_body and self._answered:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        self._forget_body()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True
        self._again = None
        self._num_headers = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field. Those behind a body are counted and left out: what they say has been asked of the head."""
        self._num_headers += 1
        if self._num_headers > self._limits.max_headers:
            message = f"the request has more than {self._limits.max_headers} header fields (max_headers)"
            self._refuse_head(HeadTooLarge(message, reason="TOO_MANY_HEADERS"))
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head is there."""
        self._in_head = False
        self._stop_waiting()
        if self.parser.get_method() == b"CONNECT":
            self._refuse_head(InvalidRequest("this is no proxy: CONNECT is not answered", reason="NO_PROXY"))
        if self.parser.should_upgrade():
            self._again = self._head_without_upgrade()
            return
        if CONTROL.search(urllib.parse.unquote(self.url.partition(b"?")[0].decode("latin-1"))):
            self._refuse_head(InvalidRequest("the request's path has control characters", reason="MALFORMED_PATH"))
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse_head(InvalidRequest("too many requests wait behind another on this connection"))
        version = self.parser.get_http_version()
        try:
            self._refuse_host(host_asked_for(version, self.url, self.headers))
        except TokenwireError as error:
            self._refuse_head(error)
        if version == "1.0":
            if not self._answered:
                self._refuse_head(InvalidRequest("HTTP/1.0 behind a request that is being answered"))
            self.expect_100_continue = self.in_chunks = False
        self._in_body = True
        self._framing.body(self.headers)
        self.scope["extensions"][ANNOUNCED] = self._framing.announced  # type: ignore[assignment]
        super().on_headers_complete()
        if self._is_draining() or self.loop.time() >= self._leaves_s:
            self._answer_last()
        if self.pipeline:
            self.flow.resume_reading()  # so few may wait, and one whose client goes must be known

    def on_body(self, body: bytes) -> None:
        """A piece of a body. Where its answer is there already, it is thrown away."""
        if not self.cycle.response_complete:
            if not self._bodies.take(len(body)):
                message = f"{self._bodies.max_bytes} bytes of unfinished bodies are here, the most allowed"
                message += " (max_unfinished_bytes)"
                self._refuse_head(Unavailable(message, reason=TOO_MANY_BODIES, retry_after_s=RETRY_AFTER_S))
            self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A whole request is there."""
        if self._again is not None:
            return  # the parser gives up its body for lost
        self._in_body = False
        self._framing.next()
        self._forget_body()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is written. Where it did not need its request's body, the rest of that is waited for, not long."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and self._lingering is None:
            self._forget_body()
            self._lingering = self.loop.call_later(LINGER_S, self.transport.close)

    def shutdown(self) -> None:
        """The process goes: whoever has no answer yet gets it, but a body is not waited for."""
        if self._in_body and not (self._answered or self.cycle.response_started or self.pipeline):
            message = "the gateway is shutting down, and the request's body is not here yet"
            self._refuse(Unavailable(message, reason="SHUTTING_DOWN", retry_after_s=RETRY_AFTER_S))
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What was read is no request that is let in."""
        self._refuse(self._refusal or InvalidRequest("this cannot be read as HTTP/1.1", reason="MALFORMED_HTTP"))

    def _forget_body(self) -> None:
        """The body is whole, or given up."""
        self._bodies.give_back(self._body_bytes)
        self._body_bytes = 0

    def _answer_last(self) -> None:
        """The answer to the request whose head has been read says that the connection closes behind it."""
        cycle = self.pipeline[0][0] if self.pipeline else self.cycle
        cycle.keep_alive = False

    @property
    def _answered(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        """Let the parser read.

        Behind a head that wishes for another protocol, which a server may ignore (RFC 9110, 7.8), it takes what follows
        for that protocol. So it is given such a head again, as it read it, without the wish; then its body. Java's own
        client wishes so by default.
        """
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    assert self._again is not None, "a head without the wish came before"
                    data = self._again + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self.send_400_response(str(error))

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _too_large(self) -> TokenwireError:
        most = self._limits.max_header_bytes
        return HeadTooLarge(f"the request's head is larger than {most} bytes, the most allowed (max_header_bytes)")

    def _refuse_head(self, error: TokenwireError) -> None:
        """Called by the parser, which hands what is raised to `send_400_response` in its own words."""
        self._refusal = error
        raise error

    def _refuse(self, error: TokenwireError) -> None:
        """Answer and close; where another answer is being written, nothing may stand in it: close alone."""
        self._stop_waiting()
        self._on_refused(error.reason.lower())
        unanswered = self._in_body and not (self.cycle.response_started or self.pipeline)
        if unanswered or (self._answered and not self._in_body):
            self.transport.write(_whole_answer(error))
        self.transport.close()

    def _expect_head(self) -> None:
        """From now on a head must come in time. Later calls change nothing until it has."""
        if self._slow is None:
            self._slow = self.loop.call_later(self._limits.header_timeout_s, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _too_slow(self) -> None:
        self._slow = None
        if self.transport.is_closing() or not self._answered:
            return
        if self._in_head:
            limit_s = self._limits.header_timeout_s
            self._refuse(RequestTimeout(f"the request's head did not come within {limit_s:g} s (header_timeout_s)"))
        else:
            self.transport.close()


def _whole_answer(error: TokenwireError) -> bytes:
    """Status, fields and body."""
    body = json.dumps({"error": error_object(error)}).encode()
    retry = b"" if error.retry_after_s is None else b"retry-after: %d\r\n" % whole_seconds(error.retry_after_s)
    status = http.HTTPStatus(error.http_status)
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
        % (status, status.phrase.encode(), len(body), retry, body)
    )
