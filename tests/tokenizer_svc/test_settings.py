import pytest

from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire.routing.targets import AddressTarget, DnsTarget, FileTarget
from tokenwire.settings import SettingError, settings_from


def parse(**flags: str) -> TokenizerTierSettings:
    return settings_from(TokenizerTierSettings, "tokenizer", flags, {})


def test_targets_are_a_list_of_addresses_names_and_files() -> None:
    assert parse().targets == (AddressTarget("127.0.0.1:50053"),)
    assert parse(model_targets=" a:1, [::1]:2 ").targets == (AddressTarget("a:1"), AddressTarget("[::1]:2"))
    found = parse(model_targets="a:1,dns:b:2,dns:///c.d:3,file:/e/f,file:///g,file:h")
    assert found.targets == (
        AddressTarget("a:1"), DnsTarget("b", 2), DnsTarget("c.d", 3), FileTarget("/e/f"), FileTarget("/g"),
        FileTarget("h"),
    )  # fmt: skip
    assert found.model_targets == "a:1,dns:b:2,dns:c.d:3,file:/e/f,file:/g,file:h", "one spelling in the log"


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":1", "host:0", "host:99999", "host:x", "a:1,,b:2", "a:1,a:1", "::1:5", "http://a:1"),
        *("dns:", "dns:host", "dns:///host", "dns:host:0", "dns://1.1.1.1/host:5", "dns:a:1,dns:///a:1", "file:"),
    ],
)
def test_bad_targets_are_named(text: str) -> None:
    with pytest.raises(SettingError, match="--model-targets=.*host:port"):
        parse(model_targets=text)


def test_the_environment_of_this_tier() -> None:
    environ = {"TOKENWIRE_TOKENIZER_ENCODE_WINDOW_MS": "1.5", "TOKENWIRE_MODEL_ENGINE": "mock"}
    assert settings_from(TokenizerTierSettings, "tokenizer", {}, environ).encode_window_ms == 1.5
    with pytest.raises(SettingError, match="TOKENWIRE_TOKENIZER_ENGINE"):
        settings_from(TokenizerTierSettings, "tokenizer", {}, {"TOKENWIRE_TOKENIZER_ENGINE": "mock"})


def test_routing_settings_have_bounds() -> None:
    assert parse(routing_policy="session-affinity").routing_policy == "session-affinity"
    with pytest.raises(SettingError, match="--routing-policy='round-robin': must be one of least-load, power-of-two"):
        parse(routing_policy="round-robin")
    with pytest.raises(SettingError, match="--max-ejected-share='2': must be at most 1"):
        parse(max_ejected_share="2")
