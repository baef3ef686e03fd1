"""A browser's side of the Connect protocol and of gRPC-Web, written from their references, over httpx."""

import base64
import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import grpc
import httpx
from google.protobuf import any_pb2, json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status

from tokenwire.errors import TokenwireError
from tokenwire.status import from_wire
from tokenwire.v1 import gateway_pb2

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GenerationService"]
PATH = "/tokenwire.v1.GenerationService/"
STREAMED = {"Generate", "Chat", "GetTokenizer", "Session", "StreamDetokenize"}
FORMS = ("connect", "connect json", "grpc-web", "grpc-web json", "grpc-web text")
Headers = Mapping[str, str] | Sequence[tuple[str, str]]
CODES = {code.name.lower().replace("cancelled", "canceled"): code for code in grpc.StatusCode}


def envelope(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(payload)) + payload


@dataclass
class WebResult:
    """What one call answered."""

    messages: list[Any] = field(default_factory=list)
    code: str = ""
    """Of gRPC; OK where it ended well, empty where no end came."""
    error: TokenwireError | None = None
    http_status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def or_raise(self) -> list[Any]:
        """The messages. Raises the call's error."""
        if self.error is not None:
            raise self.error
        assert self.code == "OK", self
        return self.messages


class WebCaller:
    """Calls methods in one of FORMS."""

    def __init__(self, http: httpx.AsyncClient | None, form: str) -> None:
        """`http`: None makes bodies and reads answers, and calls nobody."""
        assert form in FORMS
        self.http = http
        self.connect = form.startswith("connect")
        self.json = form.endswith("json")
        self.text = form.endswith("text")

    def content_type(self, method: str) -> str:
        codec = "json" if self.json else "proto"
        if self.connect:
            return f"application/{'connect+' if method in STREAMED else ''}{codec}"
        return "application/grpc-web-text" if self.text else f"application/grpc-web+{codec}"

    def body(self, method: str, message: Any) -> bytes:
        """`message`: a message, or the bytes that stand for one."""
        payload = message if isinstance(message, bytes) else self.payload(message)
        if self.connect and method not in STREAMED:
            return payload
        return self.encoded(envelope(payload))

    def payload(self, message: Any) -> bytes:
        """A message alone."""
        data: bytes = json_format.MessageToJson(message).encode() if self.json else message.SerializeToString()
        return data

    def encoded(self, framed: bytes) -> bytes:
        """Envelopes as a body."""
        return base64.b64encode(framed) if self.text else framed

    def head(self, method: str, headers: Headers, timeout_ms: int | None = None) -> list[tuple[str, str]]:
        given = headers.items() if isinstance(headers, Mapping) else headers
        found = [("content-type", self.content_type(method)), *given]
        if self.connect:
            found.append(("connect-protocol-version", "1"))
        if timeout_ms is not None:
            timeout = ("connect-timeout-ms", f"{timeout_ms}") if self.connect else ("grpc-timeout", f"{timeout_ms}m")
            found.append(timeout)
        return found

    async def call(self, method: str, message: Any, headers: Headers = (), timeout_ms: int | None = None) -> WebResult:
        """One call to its end."""
        head = self.head(method, headers, timeout_ms)
        return await self.send(method, self.body(method, message), head)

    async def send(self, method: str, content: bytes, head: Headers) -> WebResult:
        """A call with this body."""
        assert self.http is not None
        response = await self.http.post(PATH + method, content=content, headers=head)
        return self.read(method, response.status_code, response.headers, response.content)

    @asynccontextmanager
    async def open(self, method: str, message: Any, headers: Headers = ()) -> AsyncIterator[AsyncIterator[Any]]:
        """A call whose messages are read as they come. Leaving it goes away."""
        head = self.head(method, headers)
        assert self.http is not None
        async with self.http.stream(
            "POST", PATH + method, content=self.body(method, message), headers=head
        ) as response:
            assert response.headers["content-type"].startswith(self.content_type(method))
            yield self._messages(method, response)

    async def _messages(self, method: str, response: httpx.Response) -> AsyncIterator[Any]:
        data = b""
        async for piece in response.aiter_raw():
            data += base64.b64decode(piece) if self.text else piece
            frames, data = split(data)
            for flags, payload in frames:
                if not flags:
                    yield self.message(method, payload)

    def message(self, method: str, payload: bytes) -> Any:
        found = GetMessageClass(SERVICE.methods_by_name[method].output_type)()
        if self.json:
            return json_format.Parse(payload, found)
        found.ParseFromString(payload)
        return found

    def read(self, method: str, status: int, headers: Mapping[str, str], content: bytes) -> WebResult:
        """What an answer says."""
        result = WebResult(http_status=status, headers=headers)
        if self.connect and method not in STREAMED:
            if status == 200:
                assert headers["content-type"] == self.content_type(method)
                result.messages, result.code = [self.message(method, content)], "OK"
            else:
                assert headers["content-type"] == "application/json"
                result.error = connect_error(json.loads(content))
                result.code = code_of(json.loads(content))
            return result
        assert status == 200, (status, content)
        frames, rest = split(decoded_pieces(content) if self.text else content)
        assert not rest
        for flags, payload in frames:
            assert not result.code, "something follows the end"
            if not flags:
                result.messages.append(self.message(method, payload))
            elif self.connect:
                assert flags == 2
                end = json.loads(payload)
                result.code = code_of(end["error"]) if "error" in end else "OK"
                result.error = connect_error(end["error"]) if "error" in end else None
            else:
                assert flags == 0x80
                result.code, result.error = grpc_end(payload)
        return result


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Whole envelopes, and what is left."""
    found = []
    while len(data) >= 5:
        flags, length = struct.unpack_from(">BI", data)
        if len(data) < 5 + length:
            break
        found.append((flags, data[5 : 5 + length]))
        data = data[5 + length :]
    return found, data


def decoded_pieces(text: bytes) -> bytes:
    """Base64 of pieces, each padded by itself, four characters at a time."""
    return b"".join(base64.b64decode(text[at : at + 4], validate=True) for at in range(0, len(text), 4))


def code_of(error: dict[str, Any]) -> str:
    return CODES[error["code"]].name


def connect_error(error: dict[str, Any]) -> TokenwireError:
    status = Status(code=CODES[error["code"]].value[0], message=error["message"])
    for detail in error["details"]:
        assert detail["debug"]
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4), validate=True)
        status.details.append(any_pb2.Any(type_url=f"type.googleapis.com/{detail['type']}", value=value))
    return from_wire(status)


def grpc_end(payload: bytes) -> tuple[str, TokenwireError | None]:
    """Code and error of gRPC-Web's trailers."""
    assert payload.endswith(b"\r\n")
    fields = dict(line.split(": ", 1) for line in payload.decode("ascii").splitlines())
    number = int(fields.pop("grpc-status"))
    code = next(code.name for code in grpc.StatusCode if code.value[0] == number)
    if not number:
        assert not fields
        return code, None
    details = fields["grpc-status-details-bin"]
    status = Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4), validate=True))
    assert (status.code, status.message) == (number, unquote(fields["grpc-message"]))
    return code, from_wire(status)
