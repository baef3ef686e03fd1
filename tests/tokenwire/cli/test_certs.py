"""`tokenwire certs`, and the options with which commands use what it wrote."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.settings import GatewaySettings
from model_svc.settings import ModelTierSettings
from tests.fakes.certificates import Certificates
from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire.cli.examples import examples
from tokenwire.cli.main import cli
from tokenwire.cli.tiers import UpSettings, tiers_of
from tokenwire.settings import argument_parser, settings_from
from tokenwire.tls import ServerFiles


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == code, result.output
    return result.output


def test_every_tier_gets_a_certificate_that_its_settings_take(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    said = run("certs", "make", str(folder), "--host", "gpu-1.test")
    assert str(folder / "ca.pem") in said and str(folder / "client.pem") in said
    tiers = zip(
        tiers_of(UpSettings(model="m", engine="mock", tokenizer_port=2, model_port=3, tls_folder=str(folder))),
        (("gateway", GatewaySettings), ("tokenizer", TokenizerTierSettings), ("model", ModelTierSettings)),
        strict=True,
    )
    for tier, (name, kind) in tiers:
        flags = vars(argument_parser(kind, name).parse_args(tier.arguments))
        settings = settings_from(kind, name, flags, {})
        assert settings.tls is not None
        ServerFiles(settings.tls)
        assert bool(settings.tls_client_ca) == (name != "gateway")
        if name != "model":
            assert settings.upstream_tls.pems().certificate == (folder / f"{name}.pem").read_bytes()
        assert tier.tls is not None and tier.tls.pems().ca == (folder / "ca.pem").read_bytes()


def test_a_second_run_keeps_the_ca_and_replaces_the_rest(tmp_path: Path) -> None:
    run("certs", "make", str(tmp_path))
    ca, gateway = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "gateway.pem").read_bytes()
    run("certs", "make", str(tmp_path))
    assert (tmp_path / "ca.pem").read_bytes() == ca
    assert (tmp_path / "gateway.pem").read_bytes() != gateway


def test_one_more_certificate_is_signed_by_the_same_ca(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    assert run("certs", "issue", str(tmp_path), "alice", "--uri", "spiffe://test/alice").strip().endswith("alice.pem")
    assert (tmp_path / "alice-key.pem").exists() and certificates.client()


@pytest.mark.parametrize(
    "words",
    [
        ["ca"], ["CA"], ["ca-key"], ["gateway-key"], ["../alice"], [".alice"], ["a" * 65], ["\u00e9"], ["a\nb"], [""],
        ["alice", "--host", "\u00e9.test"], ["alice", "--host", ""], ["alice", "--uri", "spiffe://\u00e9"],
        ["alice", "--days", "1e9"],
    ],
    ids=ascii,
)  # fmt: skip
def test_what_no_certificate_can_be_called_is_refused_and_writes_nothing(tmp_path: Path, words: list[str]) -> None:
    run("certs", "make", str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = CliRunner().invoke(cli, ["certs", "issue", str(tmp_path), *words])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert isinstance(result.exception, SystemExit) and "Error: " in result.output, result.output


def test_a_folder_without_a_ca_is_refused(tmp_path: Path) -> None:
    assert "holds no development CA" in run("certs", "issue", str(tmp_path), "alice", code=1)


def test_a_folder_that_lacks_them_is_refused_by_up(tmp_path: Path) -> None:
    assert "does not exist" in run("up", "--tls", str(tmp_path / "nowhere"), code=2)


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    assert "TLS needs --tls-ca" in run("health", "--tls-certificate", "a.pem", code=2)
    assert "nowhere.pem" in run("tokenize", "a", "--tls-ca", "nowhere.pem", code=1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_examples_use_what_is_served(tmp_path: Path, scheme: str) -> None:
    shown = dict(examples("m", "127.0.0.1:1", "127.0.0.1:2", str(tmp_path) if scheme == "https" else ""))
    assert f"{scheme}://127.0.0.1:2/v1" in shown["curl"]
    assert ("--tls-ca" in shown["CLI"]) == ("ClientTls" in shown["Python"]) == (scheme == "https")
