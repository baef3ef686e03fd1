"""Ports and flags of the tiers that `tokenwire up` starts; no process is started."""

import socket
from collections.abc import Iterator

import pytest

from gateway.settings import GatewaySettings
from model_svc.settings import ModelTierSettings
from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire.cli.tiers import UpSettings, reachable, require_installed, tiers_of, with_ports
from tokenwire.errors import FailedPrecondition
from tokenwire.settings import argument_parser, settings_from


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_port_0_becomes_a_free_port_except_for_metrics() -> None:
    settings = with_ports(UpSettings(model="m", model_port=0))
    assert all((settings.port, settings.http_port, settings.tokenizer_port, settings.model_port))
    assert settings.gateway_metrics_port == 0


@pytest.mark.parametrize("name", ["port", "http_port", "tokenizer_port", "model_port", "model_metrics_port"])
def test_a_taken_port_is_refused_by_its_flag(taken_port: int, name: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"--{name.replace('_', '-')} {taken_port} is in use"):
        with_ports(UpSettings(model="m", **{name: taken_port}))  # type: ignore[arg-type]


def test_the_tiers_accept_their_flags() -> None:
    """Each tier's own parser reads what it would be started with."""
    up = UpSettings(
        model="some/model", dtype="float32", engine="mock", host="0.0.0.0", insecure=True, port=1, http_port=2,
        tokenizer_port=3, model_port=4, gateway_metrics_port=5, drain_timeout_s=7.5,
    )  # fmt: skip
    gateway, tokenizer, model = tiers_of(up)
    g = settings_from(GatewaySettings, "gateway", read(GatewaySettings, "gateway", gateway.arguments), {})
    t = settings_from(
        TokenizerTierSettings, "tokenizer", read(TokenizerTierSettings, "tokenizer", tokenizer.arguments), {}
    )
    m = settings_from(ModelTierSettings, "model", read(ModelTierSettings, "model", model.arguments), {})
    assert (g.host, g.insecure, g.port, g.http_port, g.metrics_port) == ("0.0.0.0", True, 1, 2, 5)
    assert (t.host, t.insecure, t.port, t.metrics_port, t.model) == ("127.0.0.1", False, 3, 0, "some/model")
    assert (m.host, m.port, m.model, m.dtype, m.engine) == ("127.0.0.1", 4, "some/model", "float32", "mock")
    assert (g.tokenizer_targets, t.model_targets) == (tokenizer.target, model.target) == ("127.0.0.1:3", "127.0.0.1:4")
    assert g.drain_timeout_s == t.drain_timeout_s == m.drain_timeout_s == 7.5


def test_what_was_not_given_is_left_to_the_tier() -> None:
    *_, model = tiers_of(UpSettings(model="m", model_port=4))
    assert "--dtype" not in model.arguments


def read(settings: type, tier: str, arguments: tuple[str, ...]) -> dict[str, object]:
    return vars(argument_parser(settings, tier).parse_args(list(arguments)))


@pytest.mark.parametrize(("host", "address"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("h", "h")])
def test_where_a_host_is_reached(host: str, address: str) -> None:
    assert reachable(host) == address


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.cli.tiers.find_spec", lambda name: None if name in ("torch", "jinja2") else object())
    with pytest.raises(FailedPrecondition, match=r"\(jinja2, torch\): pip install 'tokenwire\[all\]'"):
        require_installed("torch")
    with pytest.raises(FailedPrecondition, match=r"\(jinja2\)"):
        require_installed("mock")
