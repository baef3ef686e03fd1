"""gRPC-Web: gRPC's messages in envelopes, its trailers in the last one; the whole in base64 where a client asks so.

Source: PROTOCOL-WEB.md and PROTOCOL-HTTP2.md of gRPC.
"""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from urllib.parse import quote

from starlette.types import Send

from gateway.http.connection import Connection
from gateway.web.answers import Answer, FramedAnswer
from gateway.web.codecs import Codec
from gateway.web.envelopes import envelope, only_message
from gateway.web.forms import refuse_compression
from gateway.web.status import CallStatus
from tokenwire.errors import InvalidRequest
from tokenwire.status import STATUS_DETAILS_KEY

TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
TRAILERS = 0x80
"""The flag of the last envelope."""
PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""What stands in grpc-message as it is."""


class GrpcWeb:
    """`application/grpc-web`, and with `as_text` `application/grpc-web-text`."""

    streams: bool | None = None

    def __init__(self, codec: Codec, content_type: bytes, *, as_text: bool = False) -> None:
        self.codec = codec
        self._content_type = content_type
        self._as_text = as_text

    def timeout_s(self, headers: Mapping[str, str]) -> float | None:
        """As Form says."""
        refuse_compression(headers, "content-encoding", "grpc-encoding")
        given = headers.get("grpc-timeout")
        if given is None:
            return None
        found = TIMEOUT.fullmatch(given)
        if found is None:
            message = f"grpc-timeout {given!r:.80} is not allowed: at most eight digits and one of H, M, S, m, u, n"
            raise InvalidRequest(message, reason="MALFORMED_TIMEOUT")
        return int(found[1]) * UNITS_S[found[2]]

    def message_of(self, body: bytes) -> bytes:
        """As Form says."""
        if self._as_text:
            try:
                body = b64decode(body, validate=True)
            except binascii.Error as error:
                raise InvalidRequest(f"the body is not base64 ({error})", reason="MALFORMED_FRAME") from None
        return only_message(body)

    def answer(self, send: Send, connection: Connection) -> Answer:
        """As Form says."""
        return FramedAnswer(send, connection, self._content_type, trailers, as_text=self._as_text)


def trailers(status: CallStatus | None) -> bytes:
    """The last envelope."""
    if status is None:
        return envelope(TRAILERS, b"grpc-status: 0\r\n")
    lines = f"grpc-status: {status.number}\r\ngrpc-message: {quote(status.message, safe=PLAIN)}\r\n"
    if status.details:
        lines += f"{STATUS_DETAILS_KEY}: {b64encode(status.details).decode().rstrip('=')}\r\n"
    return envelope(TRAILERS, lines.encode())
