"""What a handler and the interceptors around it are given for a call of a browser's.

It has as much of `grpc.aio.ServicerContext` as they use. Does not know which protocol the call came by.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import grpc

from gateway.identity.certificates import names_by_kind
from gateway.web.answers import Answer
from gateway.web.codecs import Codec
from gateway.web.status import CallStatus
from tokenwire.status import STATUS_DETAILS_KEY


class WebContext:
    """Of one call."""

    def __init__(
        self,
        metadata: tuple[tuple[str, str], ...],
        certificate: Mapping[str, Any],
        deadline_s: float | None,
        codec: Codec,
        answer: Answer,
    ) -> None:
        """`certificate`: the client's, as `ssl` tells it; empty: none. `deadline_s`: monotonic clock; None: none."""
        self.status: CallStatus | None = None
        """What the call was ended with."""
        self._metadata = metadata
        self._certificate = certificate
        self._deadline_s = deadline_s
        self._codec = codec
        self._answer = answer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The request's header fields."""
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """Names in the client's certificate, under gRPC's words for their kinds."""
        return {kind: [name.encode() for name in names] for kind, names in names_by_kind(self._certificate).items()}

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None: it does not say."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        """Tell the caller before the first message."""
        await self._answer.begin(metadata)

    async def write(self, message: Any) -> None:
        """Answer one message."""
        await self._answer.message(await self._codec.write(message))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, bytes]] = ()
    ) -> NoReturn:
        """End the call. Raises grpc.aio.AbortError."""
        about = next((value for key, value in trailing_metadata if key == STATUS_DETAILS_KEY), b"")
        self.status = CallStatus(code, details, about)
        raise grpc.aio.AbortError
