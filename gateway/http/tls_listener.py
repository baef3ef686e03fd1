"""Accepts the connections of a TLS port, so that handshakes that go on are bounded in number and in time.

asyncio's own server says nothing of a connection before its handshake is done: whoever opens many and says nothing
would be counted nowhere. Stands among uvicorn's servers. Knows nothing of HTTP.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from tokenwire.tasks import cancel_and_wait

log = logging.getLogger(__name__)

PAUSE_S = 1.0
"""After the system had no more files to give."""


class TlsListener:
    """One listening socket. `start`, `close`, `wait_closed`."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        handshake_timeout_s: float,
        has_room: Callable[[int], bool],
        backlog: int,
    ) -> None:
        """`has_room`: whether one more connection may come, beside so many handshakes that go on.

        `listener` is closed with this.
        """
        self._socket = listener
        self._socket.setblocking(False)
        self._socket.listen(backlog)
        self._context = context
        self._make_protocol = make_protocol
        self._handshake_timeout_s = handshake_timeout_s
        self._has_room = has_room
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Accept connections."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept nothing more: the port closes as soon as the loop runs on. Handshakes that go on may end."""
        if self._accepting is not None:
            self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Accept nothing more, and give up what has not shaken hands."""
        if self._accepting is not None:
            await cancel_and_wait(self._accepting, *self._handshakes)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._socket:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._socket)
                except OSError as error:
                    log.error("no connection can be accepted for the moment: %s", error)
                    await asyncio.sleep(PAUSE_S)
                    continue
                if not self._has_room(len(self._handshakes)):
                    connection.close()
                    continue
                task = loop.create_task(self._shake_hands(connection))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket) -> None:
        """Hand the connection to a protocol of its own. What goes wrong is logged where it happens."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_timeout_s,
            )
