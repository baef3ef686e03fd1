"""The naming scheme holds, and the endpoint answers."""

import socket
import threading
import urllib.request
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from tests.waiting import wait_for
from tokenwire.addresses import free_ports
from tokenwire.errors import FailedPrecondition
from tokenwire.telemetry import TierMetrics, exposition, metrics_server, serve_metrics
from tokenwire.telemetry.metrics_server import MAX_CONNECTIONS


def test_metrics_carry_tier_and_unit() -> None:
    registry = CollectorRegistry()
    metrics = TierMetrics("gateway", registry)
    metrics.counter("requests_total", "Requests", ["api"]).labels("chat").inc()
    metrics.gauge("open_streams", "Open").set(2)
    metrics.histogram("first_text_seconds", "First text").observe(0.003)
    text = exposition(registry).decode()
    assert "_created" not in text, "documented series alone"
    assert 'tokenwire_gateway_requests_total{api="chat"} 1.0' in text
    assert "tokenwire_gateway_open_streams 2.0" in text
    assert 'tokenwire_gateway_first_text_seconds_bucket{le="0.005"} 1.0' in text


@pytest.mark.parametrize("what", ["requests", "latency", "latency_ms", "Open_streams", "_seconds"])
def test_a_name_without_its_unit_is_refused(what: str) -> None:
    metrics = TierMetrics("gateway", CollectorRegistry())
    with pytest.raises(ValueError, match="must end in its unit"):
        metrics.gauge(what, "x")


def test_a_metric_is_made_once() -> None:
    metrics = TierMetrics("gateway", CollectorRegistry())
    metrics.gauge("open_streams", "x")
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.gauge("open_streams", "x")


def test_the_endpoint_answers() -> None:
    registry = CollectorRegistry()
    TierMetrics("model", registry).gauge("kv_blocks", "x").set(5)
    (port,) = free_ports(1)
    serve_metrics("127.0.0.1", port, registry)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert b"tokenwire_model_kv_blocks 5.0" in answer.read()


def test_connections_that_say_nothing_keep_nobody_out_and_are_few() -> None:
    registry = CollectorRegistry()
    (port,) = free_ports(1)
    serve_metrics("127.0.0.1", port, registry)
    before = threading.active_count()
    with ExitStack() as silent:
        for _ in range(3 * MAX_CONNECTIONS):
            connection = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"GET /met")
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert answer.status == 200
        wait_for(lambda: threading.active_count() <= before + MAX_CONNECTIONS)
    wait_for(lambda: threading.active_count() <= before)


def test_a_connection_that_says_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIME_LIMIT_S", 0.1)
    (port,) = free_ports(1)
    serve_metrics("127.0.0.1", port, CollectorRegistry())
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /met")
        assert connection.recv(1) == b""


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"metrics port {port} .* --metrics-port"):
            serve_metrics("127.0.0.1", port)
