"""What being observed costs: the collector, tiers that count nothing, and the page."""

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.observing import EVERYTHING, METRICS, NOTHING, TIERS, collector, measure, ratios, text_of
from tests.fakes.collector import traces_counter
from tokenwire.telemetry.otlp import OtlpSink
from tokenwire.telemetry.tracing import Span, Tracer


def test_the_collector_takes_what_a_tier_sends() -> None:
    with collector() as (endpoint, taking):
        tracer = Tracer(OtlpSink(endpoint, "gateway", traces_counter()))
        tracer.end(lambda: [Span("sent", tracer.begin(""), 0.0, 1.0, "server")])
        tracer.close()
        assert taking.num_bytes > 100


def test_a_tier_that_counts_nothing_has_its_metrics_at_zero() -> None:
    code = (
        "from benchmarks.contenders import uncounted\n"
        "from prometheus_client import CollectorRegistry\n"
        "from gateway.metrics import GatewayMetrics, RequestRecord\n"
        "import sys; sys.argv = ['uncounted', 'keyword']\n"
        "uncounted.main()\n"
        "registry = CollectorRegistry()\n"
        "with RequestRecord(GatewayMetrics(registry), 'api') as record: record.saw_text()\n"
        "for name in ('requests_total', 'first_text_seconds_count'):\n"
        "    labels = {'api': 'api', 'outcome': 'ok'} if name == 'requests_total' else {'api': 'api'}\n"
        "    assert registry.get_sample_value(f'tokenwire_gateway_{name}', labels) == 0.0, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.extended
@pytest.mark.model
def test_all_three_are_measured() -> None:
    record = measure(2, 4, 1, 1.0)
    assert {name: [each["output_tokens"] for each in found] for name, found in record["figures"].items()} == {
        NOTHING: [4 * 64], METRICS: [4 * 64], EVERYTHING: [4 * 64],
    }  # fmt: skip
    assert record["trace_bytes"] > 4 * 2 * 300, "two tiers' spans of every request, the question at the start besides"
    assert set(record["ratios"]) == {METRICS, EVERYTHING} and text_of(record)


def found(gateway: float, tokenizer: float) -> dict[str, Any]:
    return {"tiers": dict(zip(TIERS, ({"cpu_s_per_1000_tokens": each} for each in (gateway, tokenizer)), strict=True))}


def test_ratios_are_those_of_each_round() -> None:
    rounds = {
        NOTHING: [found(0.02, 0.01), found(0.03, 0.01)],
        METRICS: [found(0.02, 0.01), found(0.03, 0.01)],
        EVERYTHING: [found(0.022, 0.011), found(0.03, 0.012)],
    }
    assert ratios(rounds, EVERYTHING) == [1.1, 1.05] and ratios(rounds, METRICS) == [1.0, 1.0]
    record = {
        "quiet": True, "rounds": 2, "concurrency": 8, "output_tokens": 64, "figures": rounds,
        "trace_ratio": 0.1, "trace_bytes": 2_000_000,
        "ratios": {name: ratios(rounds, name) for name in (METRICS, EVERYTHING)},
    }  # fmt: skip
    text = text_of(record)
    assert "1.100, 1.050" in text and "1.075" in text and "10%" in text and "2.0 MB" in text
