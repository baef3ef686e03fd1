import pytest

from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire.settings import SettingError, settings_from


def parse(**flags: str) -> TokenizerTierSettings:
    return settings_from(TokenizerTierSettings, "tokenizer", flags, {})


def test_targets_are_a_list_of_addresses() -> None:
    assert parse().targets == ("127.0.0.1:50053",)
    assert parse(model_targets=" a:1, [::1]:2 ").targets == ("a:1", "[::1]:2")


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:99999", "host:x", "a:1,,b:2", "a:1,a:1"])
def test_bad_targets_are_named(text: str) -> None:
    with pytest.raises(SettingError, match="--model-targets=.*host:port"):
        parse(model_targets=text)


def test_the_environment_of_this_tier() -> None:
    environ = {"TOKENWIRE_TOKENIZER_ENCODE_WINDOW_MS": "1.5", "TOKENWIRE_MODEL_ENGINE": "mock"}
    assert settings_from(TokenizerTierSettings, "tokenizer", {}, environ).encode_window_ms == 1.5
    with pytest.raises(SettingError, match="TOKENWIRE_TOKENIZER_ENGINE"):
        settings_from(TokenizerTierSettings, "tokenizer", {}, {"TOKENWIRE_TOKENIZER_ENGINE": "mock"})
