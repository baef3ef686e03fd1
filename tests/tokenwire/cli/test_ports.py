"""Who holds a port: free, a stranger, a Tokenwire tier."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tokenwire.addresses import is_free
from tokenwire.cli.ports import holder, tokenwire_tier


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_is_free_until_someone_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_the_holder_is_named(listener: int) -> None:
    assert f"PID {os.getpid()}" in holder(listener)


def test_a_port_that_an_outgoing_connection_got_is_told_from_a_listener(listener: int) -> None:
    with socket.create_connection(("127.0.0.1", listener)) as connection:
        port = connection.getsockname()[1]
        assert not is_free(port)
        assert "a connection of " in holder(port) and f"PID {os.getpid()}" in holder(port)
        assert "connection" not in holder(listener)


@pytest.mark.parametrize("speaks_grpc", [True, False])
def test_a_stranger_that_never_answers_is_no_tier(listener: int, speaks_grpc: bool) -> None:
    assert tokenwire_tier(listener, speaks_grpc=speaks_grpc) == ""


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("tokenwire.v1.ModelService", "model_svc, SERVING"),
        ("tokenwire.v1.GenerationService", "gateway, SERVING"),
        ("other.Service", ""),
    ],
)
def test_a_grpc_tier_is_told_by_its_health(service: str, expected: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert tokenwire_tier(port, speaks_grpc=True) == expected
        servicer.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert tokenwire_tier(port, speaks_grpc=True) == expected.replace("SERVING", "NOT_SERVING")
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("body", "expected"), [(b"tokenwire_gateway_up 1", "its metrics answer"), (b"go_gc 1", "")])
def test_a_metrics_port_is_told_by_its_metrics(body: bytes, expected: str) -> None:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert tokenwire_tier(server.server_port, speaks_grpc=False) == expected
        thread.join()
