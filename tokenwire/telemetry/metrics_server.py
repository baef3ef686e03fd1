"""The server of the metrics port: prometheus_client's answer, to few at once, of which none keeps others out.

Handshakes are made by each connection's own thread, not where connections are accepted. One that comes where
MAX_CONNECTIONS are open takes the place of the one that has been there longest: a scrape takes milliseconds, and who
sends nothing does not.
"""

import contextlib
import socket
import ssl
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from tokenwire.tls import ServerTls, server_context

MAX_CONNECTIONS = 32
TIME_LIMIT_S = 10.0
"""For each read and write."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Who scrapes is not logged."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Answers `GET /metrics`. Raises OSError where the port cannot be had."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, registry: CollectorRegistry, tls: ServerTls | None) -> None:
        self.address_family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._context = server_context(tls) if tls is not None else None
        self._open: dict[socket.socket, None] = {}
        """In the order in which they came."""
        self._lock = threading.Lock()
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        self.set_app(make_wsgi_app(registry))

    def start(self) -> None:
        """Serve in a thread that ends with the process."""
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def server_bind(self) -> None:
        """Without looking up what this machine is called, which may take seconds."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "metrics", self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection, whose handshake is still to be made."""
        connection, address = super().get_request()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                longest = next(iter(self._open))
                del self._open[longest]
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(longest, socket.SHUT_RDWR)
            self._open[connection] = None
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer, on the connection's own thread."""
        request.settimeout(TIME_LIMIT_S)
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        with self._lock:
            self._open.pop(request, None)
        with contextlib.suppress(OSError, ValueError):
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes, says nothing or says something else is not logged."""
