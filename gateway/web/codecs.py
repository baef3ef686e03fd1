"""Messages as bytes, in protobuf's binary form or its JSON form. Does not know what stands around them.

Large JSON is read and written in a thread, one at a time: protobuf's Python code for it holds up whoever waits.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from tokenwire.errors import InvalidRequest
from tokenwire.interceptor import NOT_PROTOBUF

LARGE_BYTES = 64 * 1024
"""About 2 ms of reading and writing."""
MAX_SHOWN_CHARS = 300


class Codec(Protocol):
    """One form."""

    async def read(self, data: bytes, request_class: Any) -> Any:
        """The message. Raises InvalidRequest."""

    async def write(self, message: Any) -> bytes:
        """A message as bytes."""


class Binary:
    """Protobuf's own form."""

    async def read(self, data: bytes, request_class: Any) -> Any:
        """As Codec says."""
        try:
            return request_class.FromString(data)
        except (DecodeError, UnicodeDecodeError) as error:
            raise _malformed(f"{NOT_PROTOBUF} ({error})") from None

    async def write(self, message: Any) -> bytes:
        """As Codec says."""
        data: bytes = message.SerializeToString()
        return data


class Json:
    """Protobuf's JSON form. A field that is not known is refused."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")

    async def read(self, data: bytes, request_class: Any) -> Any:
        """As Codec says."""
        if len(data) < LARGE_BYTES:
            return _parsed(data, request_class)
        return await asyncio.get_running_loop().run_in_executor(self._thread, _parsed, data, request_class)

    async def write(self, message: Any) -> bytes:
        """As Codec says."""
        if message.ByteSize() < LARGE_BYTES:
            return _json(message)
        return await asyncio.get_running_loop().run_in_executor(self._thread, _json, message)

    def close(self) -> None:
        """Nothing is read or written any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _parsed(data: bytes, request_class: Any) -> Any:
    try:
        if not data.lstrip().startswith(b"{"):
            raise ValueError("a message is an object")  # protobuf takes an empty list for one too
        return json_format.Parse(data, request_class())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:MAX_SHOWN_CHARS].encode(errors="replace").decode()
        raise _malformed(f"the message is not valid JSON of its type ({reason})") from None


def _malformed(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="MALFORMED_MESSAGE")


def _json(message: Any) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode()
