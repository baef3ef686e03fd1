"""The pipe between the gRPC process and the engine process: pickled messages, each behind its length.

Both ends belong to one program and share a private socket pair, so pickle is safe here. This is the engine's, blocking,
end; the gRPC process has an asyncio one in `model_svc.engine_process`.
"""

import pickle
import select
import socket
import struct
import time
from typing import Any

HEADER = struct.Struct("<I")
MAX_WAIT_S = 3600.0


def encode(message: Any) -> bytes:
    """A message with its length in front."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


class EngineLink:
    """The engine's end. `EOFError` means that the gRPC process is gone."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Send one message; waits while the other side is behind. Raises EOFError when it is gone."""
        try:
            self._socket.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def receive(self, *, timeout_s: float | None) -> list[Any]:
        """All messages that have come whole; waits for the first up to `timeout_s` seconds, None: for ever.

        Raises EOFError when the other side is gone.
        """
        messages = self._parse()
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._readable(0.0 if messages else _left_s(until_s)):
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._buffer += data
            messages += self._parse()
        return messages

    def _readable(self, timeout_s: float | None) -> bool:
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def _parse(self) -> list[Any]:
        messages: list[Any] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer, start)
            end = start + HEADER.size + size
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(self._buffer[start + HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return messages


def _left_s(until_s: float | None) -> float | None:
    """What may be waited at once: not longer than the system can count."""
    return None if until_s is None else min(MAX_WAIT_S, max(0.0, until_s - time.monotonic()))
