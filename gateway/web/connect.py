"""The Connect protocol: unary calls as plain requests, streams in envelopes, errors as JSON.

Source: https://connectrpc.com/docs/protocol. Its GET is for methods said to have no side effects; none here is.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import json_format
from starlette.types import Send

from gateway.http.connection import Connection
from gateway.http.errors import whole_seconds
from gateway.web.answers import Answer, FramedAnswer, Headers, WholeAnswer
from gateway.web.codecs import Codec
from gateway.web.envelopes import envelope, only_message
from gateway.web.forms import refuse_compression
from gateway.web.status import CallStatus
from tokenwire.errors import InvalidRequest
from tokenwire.status import from_wire

VERSION = "1"
TIMEOUT = re.compile(r"[0-9]{1,10}", re.ASCII)
END = 0x02
"""The flag of a stream's last envelope."""

HTTP_STATUSES: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""Of an error of a unary call; 500 for the others."""


class ConnectUnary:
    """`application/proto` and `application/json`."""

    streams: bool | None = False

    def __init__(self, codec: Codec, content_type: bytes) -> None:
        self.codec = codec
        self._content_type = content_type

    def timeout_s(self, headers: Mapping[str, str]) -> float | None:
        """As Form says."""
        return _timeout_s(headers, "content-encoding")

    def message_of(self, body: bytes) -> bytes:
        """As Form says."""
        return body

    def answer(self, send: Send, connection: Connection) -> Answer:
        """As Form says."""
        return WholeAnswer(send, self._content_type, unary_failure)


class ConnectStream:
    """`application/connect+proto` and `application/connect+json`."""

    streams: bool | None = True

    def __init__(self, codec: Codec, content_type: bytes) -> None:
        self.codec = codec
        self._content_type = content_type

    def timeout_s(self, headers: Mapping[str, str]) -> float | None:
        """As Form says."""
        return _timeout_s(headers, "content-encoding", "connect-content-encoding")

    def message_of(self, body: bytes) -> bytes:
        """As Form says."""
        return only_message(body)

    def answer(self, send: Send, connection: Connection) -> Answer:
        """As Form says."""
        return FramedAnswer(send, connection, self._content_type, stream_end)


def unary_failure(status: CallStatus) -> tuple[int, Headers, bytes]:
    """HTTP status, headers and body of a unary call that failed."""
    headers: Headers = [(b"content-type", b"application/json")]
    retry_after_s = from_wire(status.parsed_details()).retry_after_s
    if retry_after_s is not None:
        headers.append((b"retry-after", str(whole_seconds(retry_after_s)).encode()))
    return HTTP_STATUSES.get(status.code, 500), headers, _json(error_object(status))


def stream_end(status: CallStatus | None) -> bytes:
    """The last envelope of a stream."""
    return envelope(END, _json({} if status is None else {"error": error_object(status)}))


def error_object(status: CallStatus) -> dict[str, Any]:
    """An error as Connect writes it, each detail readable besides (`debug`)."""
    code = "canceled" if status.code is grpc.StatusCode.CANCELLED else status.code.name.lower()
    details = [
        {
            "type": detail.type_url.rpartition("/")[2],
            "value": b64encode(detail.value).decode().rstrip("="),
            "debug": _readable(detail),
        }
        for detail in status.parsed_details().details
    ]
    return {"code": code, "message": status.message, "details": details}


def _readable(detail: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(detail)
    del found["@type"]
    return found


def _timeout_s(headers: Mapping[str, str], *encodings: str) -> float | None:
    version = headers.get("connect-protocol-version", VERSION)
    if version != VERSION:
        message = f"connect-protocol-version {version!r:.80} is not known here: this server speaks {VERSION}"
        raise InvalidRequest(message, reason="PROTOCOL_VERSION")
    refuse_compression(headers, *encodings)
    given = headers.get("connect-timeout-ms")
    if given is None:
        return None
    if not TIMEOUT.fullmatch(given):
        message = f"connect-timeout-ms {given!r:.80} is not allowed: milliseconds, at most ten digits"
        raise InvalidRequest(message, reason="MALFORMED_TIMEOUT")
    return int(given) / 1000


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
