"""In which form a call comes: what its content type says. Connect's and gRPC-Web's forms are these."""

from collections.abc import Mapping
from typing import Protocol

from starlette.types import Send

from gateway.http.connection import Connection
from gateway.web.answers import Answer
from gateway.web.codecs import Codec
from tokenwire.errors import Unsupported

IDENTITY = ("", "identity")


class Form(Protocol):
    """One content type."""

    codec: Codec
    streams: bool | None
    """Whether the methods called this way stream their answers; None: both kinds are."""

    def timeout_s(self, headers: Mapping[str, str]) -> float | None:
        """How long the caller waits; None: it does not say. Raises InvalidRequest, and Unsupported for compression.

        Of all that the head says of the call, this is the first to be read: what is wrong with it is found here.
        """

    def message_of(self, body: bytes) -> bytes:
        """The request's message. Raises InvalidRequest and Unsupported."""

    def answer(self, send: Send, connection: Connection) -> Answer:
        """Where the answer goes."""


def refuse_compression(headers: Mapping[str, str], *names: str) -> None:
    """Raise Unsupported where a request says that it is compressed."""
    for name in names:
        if headers.get(name, "").strip().lower() not in IDENTITY:
            message = f"{name} {headers[name]!r:.80} is not read here: send messages as they are"
            raise Unsupported(message, reason="COMPRESSION")
