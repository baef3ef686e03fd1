"""Trace context, sampling, phases, and what is loaded when tracing is off."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.fakes.collector import traces_counter
from tests.fakes.spans import keeping_tracer
from tokenwire.cutting import MAX_TOLD_BYTES
from tokenwire.errors import FailedPrecondition
from tokenwire.settings import ServerSettings, SettingError, settings_from
from tokenwire.telemetry import tracing
from tokenwire.telemetry.tracing import Span, TraceContext, open_tracer, phases

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass(frozen=True, kw_only=True)
class Settings(ServerSettings):
    """A tier's."""


def test_a_callers_trace_goes_on_and_its_decision_holds() -> None:
    for flags, sampled in (("01", True), ("00", False), ("03", True)):
        for ratio in (0.0, 1.0):
            found = keeping_tracer(ratio)[0].begin(f"00-{TRACE}-{SPAN}-{flags}")
            assert (f"{found.trace_id:032x}", f"{found.parent_id:016x}", found.sampled) == (TRACE, SPAN, sampled)
            assert found.span_id not in (0, found.parent_id)
            assert found.traceparent == f"00-{TRACE}-{found.span_id:016x}-0{int(sampled)}"


@pytest.mark.parametrize(
    "traceparent",
    [
        "", "00-a-b-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}-01\n",
    ],
)  # fmt: skip
def test_what_is_no_trace_context_begins_a_trace(traceparent: str) -> None:
    found = keeping_tracer()[0].begin(traceparent)
    assert found.parent_id == 0 and found.sampled and f"{found.trace_id:032x}" != TRACE


def test_a_later_version_may_say_more() -> None:
    assert f"{keeping_tracer()[0].begin(f'01-{TRACE}-{SPAN}-01-more').trace_id:032x}" == TRACE


def test_of_one_that_is_not_trusted_the_trace_goes_on_and_is_kept_by_chance() -> None:
    for flags in ("00", "01"):
        for ratio, sampled in ((0.0, False), (1.0, True)):
            found = keeping_tracer(ratio)[0].begin(f"00-{TRACE}-{SPAN}-{flags}", trusted=False)
            assert (f"{found.trace_id:032x}", f"{found.parent_id:016x}", found.sampled) == (TRACE, SPAN, sampled)
    tracer, _ = keeping_tracer(0.25)
    lowest = f"00-{'1'.zfill(32)}-{SPAN}-01"
    kept = sum(tracer.begin(lowest, trusted=False).sampled for _ in range(4000))
    assert 800 < kept < 1200, "whatever id it has chosen"


def test_the_ratio_is_that_of_the_traces_begun_here() -> None:
    assert not keeping_tracer(0.0)[0].begin("").sampled
    tracer, _ = keeping_tracer(0.25)
    kept = sum(tracer.begin("").sampled for _ in range(4000))
    assert 800 < kept < 1200, "a quarter, give or take"


def test_phases_follow_each_other_and_those_without_time_are_left_out() -> None:
    of = TraceContext(1, 2)
    found = phases(of, 1.0, ("a", 1.5), ("b", 1.5), ("c", 1.25), ("d", 4.0))
    assert [(each.name, each.begin_s, each.end_s) for each in found] == [("a", 1.0, 1.5), ("d", 1.5, 4.0)]
    assert {each.context.parent_id for each in found} == {2} and len({each.context.span_id for each in found}) == 2


def test_off_nothing_is_loaded() -> None:
    code = (
        "import sys, gateway.server, tokenizer_svc.server, model_svc.server\n"
        "from gateway.settings import GatewaySettings\n"
        "from tokenwire.telemetry.tracing import open_tracer\n"
        "assert open_tracer(GatewaySettings(), 'gateway', None) is None\n"
        "of_traces = ('opentelemetry.sdk', 'opentelemetry.exporter', 'tokenwire.telemetry.otlp')\n"
        "sys.exit(any(name.startswith(of_traces) for name in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_package_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'opentelemetry'", name="opentelemetry")

    monkeypatch.setattr(tracing.importlib, "import_module", absent)
    with pytest.raises(FailedPrecondition, match=r"pip install 'tokenwire\[tracing\]'"):
        open_tracer(Settings(trace_endpoint="http://127.0.0.1:4317"), "gateway", traces_counter())


@pytest.mark.parametrize("error", [TypeError("Couldn't build proto file"), ImportError("cannot import name 'x'")])
def test_a_package_that_is_there_and_fails_to_load_is_told_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(tracing.importlib, "import_module", broken)
    with pytest.raises(FailedPrecondition) as caught:
        open_tracer(Settings(trace_endpoint="http://127.0.0.1:4317"), "gateway", traces_counter())
    assert f"{type(error).__name__}: {error}" in caught.value.message and "pip install" not in caught.value.message
    assert caught.value.reason == "PACKAGE_BROKEN"


def test_no_text_of_a_span_is_as_long_as_a_client_likes() -> None:
    attributes = {"model": "m" * 4_000_000, "short": "s", "tokens": 3}
    span = Span("n", TraceContext(1, 2), 0.0, 1.0, "server", attributes, "e" * 4_000_000)
    assert len(str(span.attributes["model"])) <= MAX_TOLD_BYTES >= len(span.error)
    assert (span.attributes["short"], span.attributes["tokens"]) == ("s", 3)
    assert len(attributes["model"]) == 4_000_000, "what was given is not changed"


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4317", "http://host", "ftp://host:4317", "http://host:4317/v1/traces", "http://host:99999",
        "http://host:65536", "http://host:0",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingError, match="http://host:port"):
        settings_from(Settings, "gateway", {"trace_endpoint": endpoint}, {})


@pytest.mark.parametrize(
    "endpoint", ["", "http://127.0.0.1:4317", "https://[::1]:4317", "http://otel-collector.ns:65535"]
)
def test_an_endpoint_that_is_one_is_taken(endpoint: str) -> None:
    assert settings_from(Settings, "gateway", {"trace_endpoint": endpoint}, {}).trace_endpoint == endpoint
