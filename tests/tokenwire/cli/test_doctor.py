"""`tokenwire doctor` in environments made for it."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.fakes.model_store import Bench
from tokenwire.checks import Check, Status, blocked, fail, ok, to_json
from tokenwire.cli import doctor as module
from tokenwire.cli.doctor import (
    check_disk,
    check_environment,
    check_model,
    check_port,
    check_ports,
    check_python,
    check_tier,
    doctor,
)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_an_old_python_fails() -> None:
    assert check_python((3, 10, 4)).status is Status.FAIL
    assert check_python((3, 11, 0)).status is Status.OK


def test_a_taken_port_fails_and_is_named(taken: int) -> None:
    environ = {f"TOKENWIRE_{name}_PORT": str(free_port()) for name in ("GATEWAY", "TOKENIZER")}
    environ |= {f"TOKENWIRE_{name}_METRICS_PORT": "0" for name in ("GATEWAY", "TOKENIZER", "MODEL")}
    environ |= {"TOKENWIRE_GATEWAY_HTTP_PORT": str(free_port()), "TOKENWIRE_MODEL_PORT": str(taken)}
    checks = check_ports(environ)
    assert len(checks) == 4  # a metrics port of 0 is off
    failed = [check for check in checks if check.status is Status.FAIL]
    assert [check.name for check in failed] == [f"port {taken}"]
    assert "model_svc" in failed[0].detail
    assert "TOKENWIRE_MODEL_PORT" in failed[0].fix


def test_the_documented_ports_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_free", lambda port: True)
    ports = {check.name for check in check_ports({})}
    assert ports == {f"port {number}" for number in (50051, 50052, 50053, 8080, 9464, 9465, 9466)}


def test_a_running_tier_is_a_warning(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tokenwire_tier", lambda port, *, speaks_grpc: "model_svc, SERVING")
    check = check_port("port", "model_svc port", taken, "TOKENWIRE_MODEL_PORT", True)
    assert check.status is Status.WARN
    assert "model_svc, SERVING" in check.detail


def tier(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_the_tiers_findings_are_taken_over() -> None:
    found = [ok("cpu", "fast"), fail("torch", "absent", "install it")]
    assert check_tier(tier(f"print({to_json(found)!r}); raise SystemExit(1)")) == found


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("import no_such_package", "tokenwire[model]"),
        ("raise SystemExit('something else')", "to see why"),
        ("print('no json')", "to see why"),
    ],
)
def test_a_tier_that_cannot_look_is_a_failure(code: str, fix: str) -> None:
    (check,) = check_tier(tier(code))
    assert check.status is Status.FAIL
    assert fix in check.fix


def test_unread_variables_are_flagged() -> None:
    environ = {
        "TOKENWIRE_HOME": "/x",
        "TOKENWIRE_LOG": "debug",
        "TOKENWIRE_MODLE_PORT": "1",
        "TOKENWIRE_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    (check,) = check_environment(environ)
    assert check.status is Status.WARN
    assert "TOKENWIRE_MODLE_PORT" in check.detail
    assert check_environment({"PATH": "/bin"})[0].status is Status.OK


def test_a_tiers_unknown_variable_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_tier.py").write_text("print('  --http-port VALUE   the port\\n  --insecure, --no-insecure   ')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(module.MODULES, "gateway", "fake_tier")
    good = {"TOKENWIRE_GATEWAY_HTTP_PORT": "1", "TOKENWIRE_GATEWAY_INSECURE": "1"}
    assert [check.status for check in check_environment(good)] == [Status.OK]
    (check,) = check_environment({**good, "TOKENWIRE_GATEWAY_HTPP_PORT": "1"})
    assert check.status is Status.FAIL
    assert "TOKENWIRE_GATEWAY_HTPP_PORT" in check.detail


def test_the_models_state(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert check_model(bench.store, "./none").status is Status.FAIL
    folder = bench.store.pull("tiny-instruct")
    assert check_model(bench.store, "tiny-instruct").status is Status.OK
    (folder / "model.safetensors").write_bytes(b"short")
    damaged = check_model(bench.store, "tiny-instruct")
    assert damaged.status is Status.FAIL
    assert "--force tiny-instruct" in damaged.fix


def test_an_absent_model_is_fetched_at_start_if_it_can_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = module.ModelStore(tmp_path)
    assert check_model(store, "default").status is Status.WARN
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    check = check_model(store, "default")
    assert check.status is Status.FAIL
    assert "tokenwire[convert]" in check.fix


def test_the_disk_is_looked_at_where_models_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path / "not/made/yet").status is Status.OK
    monkeypatch.setattr(module, "CATALOG", {module.DEFAULT_MODEL: Bench(tmp_path).catalog["tiny-instruct"]})
    assert check_disk(tmp_path).status is Status.OK


@pytest.mark.parametrize(
    ("found", "exit_code"), [([ok("a", "b")], 0), ([ok("a", "b"), fail("port 8080", "taken", "stop it")], 1)]
)
def test_the_command(found: list[Check], exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "findings", lambda environ, model: found)
    result = CliRunner().invoke(doctor)
    assert result.exit_code == exit_code
    assert ("FAIL  port 8080  taken" in result.output) is blocked(found)
    as_json = json.loads(CliRunner().invoke(doctor, ["--json"]).output)
    assert as_json["ok"] is (exit_code == 0)
    assert [check["name"] for check in as_json["checks"]] == [check.name for check in found]
