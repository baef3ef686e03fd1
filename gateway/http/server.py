"""The HTTP listener: uvicorn on the loop that is already running. Signals stay with whoever runs the process."""

import asyncio
import contextlib
import functools
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from gateway.http.body_room import BodyRoom
from gateway.http.connection import Batch
from gateway.http.guard import TOO_MANY_CONNECTIONS, GuardedConnection, HttpLimits
from gateway.http.tls_listener import TlsListener
from tokenwire.addresses import join_host_port
from tokenwire.errors import FailedPrecondition
from tokenwire.tls import ServerTls, server_context

LOOK_AGAIN_S = 0.01
"""Between looks whether the connections are gone."""
DATE_S = 1.0
"""Between two dates in the heads of answers."""


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers and its pauses, and with a listener of ours for TLS."""

    def __init__(
        self,
        config: uvicorn.Config,
        context: ssl.SSLContext | None,
        limits: HttpLimits,
        on_refused: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._context = context
        self._limits = limits
        self._on_refused = on_refused
        self._leaving = asyncio.Event()

    def leave(self, grace_s: float) -> None:
        """End `serve`; answers that are being written have this long."""
        self.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Keep the date, until it is told to leave."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_S):
                    await self._leaving.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        if self._context is None:
            await super().startup(sockets)
            return
        listeners = [
            TlsListener(
                each,
                self._context,
                self._connection,
                handshake_timeout_s=self._limits.header_timeout_s,
                has_room=self._has_room,
                backlog=self.config.backlog,
            )
            for each in sockets or ()
        ]
        for listener in listeners:
            listener.start()
        self.servers = listeners  # type: ignore[assignment]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything. Handshakes are given up first: a connection that comes now would be waited for."""
        if self._context is not None:
            for listener in self.servers:
                await listener.wait_closed()
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:
                    await asyncio.sleep(LOOK_AGAIN_S)
        for task in self.server_state.tasks:
            task.cancel()

    def _connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _has_room(self, num_handshakes: int) -> bool:
        if len(self.server_state.connections) + num_handshakes < self._limits.max_connections:
            return True
        self._on_refused(TOO_MANY_CONNECTIONS.lower())
        return False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class HttpServer:
    """One HTTP port. `bind`, `start`, `drain` perhaps, `stop`."""

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        limits: HttpLimits,
        on_refused: Callable[[str], None],
        refuse_host: Callable[[bytes], None],
        tls: ServerTls | None = None,
        share_port: bool = False,
    ) -> None:
        """`share_port`: this is one of several workers, for whom the port is held. Raises FailedPrecondition.

        `on_refused`: told the reason of each request that is not let in. `refuse_host`: raises TokenwireError for a
        `Host` field that is not answered. Whether anybody may be let in without being asked is the gRPC server's to
        say, which listens on the same host.
        """
        self.port = port
        self._host = host
        self._share_port = share_port
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._draining = False
        self.bodies = BodyRoom(limits.max_unfinished_bytes)
        """What has come of bodies that are not whole."""
        # What a client sends wrongly is answered and counted: it must not fill the log.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            loop="none",
            http=functools.partial(  # type: ignore[arg-type]
                GuardedConnection,
                limits=limits,
                on_refused=on_refused,
                is_draining=lambda: self._draining,
                refuse_host=refuse_host,
                batch=Batch(),
                bodies=self.bodies,
            ),
            timeout_keep_alive=limits.idle_timeout_s,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            access_log=False,
            server_header=False,
        )
        config.load()
        self._uvicorn = _Uvicorn(config, None if tls is None else server_context(tls), limits, on_refused)

    def bind(self) -> int:
        """Take the port; returns it. Raises FailedPrecondition when it cannot be used."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._socket = socket.create_server((self._host, self.port), family=family, reuse_port=self._share_port)
        except OSError as error:
            address = join_host_port(self._host, self.port)
            message = f"cannot listen on {address} for HTTP ({error.strerror}): give another with --http-port or --host"
            raise FailedPrecondition(message, reason="PORT_IN_USE") from error
        self.port = int(self._socket.getsockname()[1])
        return self.port

    async def start(self) -> None:
        """Accept connections."""
        assert self._socket is not None, "bind comes first"
        self._task = asyncio.get_running_loop().create_task(self._uvicorn.serve([self._socket]))
        while not self._uvicorn.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    @property
    def num_connections(self) -> int:
        """Open ones, idle or not."""
        return len(self._uvicorn.server_state.connections)

    async def drain(self) -> None:
        """Close the port. Open connections go on: each is answered once more, and told that it closes then."""
        self._draining = True
        await asyncio.sleep(0)  # those that knocked already are let in
        for server in self._uvicorn.servers:
            server.close()

    def close_idle(self) -> None:
        """Close the connections that wait for no answer, and the others when they have theirs; bodies come too late."""
        for connection in list(self._uvicorn.server_state.connections):
            connection.shutdown()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Close the port, let open answers be written for this long, then cut them."""
        if self._task is not None:
            self._uvicorn.leave(grace_s)
            await self._task
        elif self._socket is not None:
            self._socket.close()
