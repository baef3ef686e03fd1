import pytest

from gateway.settings import GatewaySettings
from tokenwire.settings import SettingError, settings_from


def test_targets_are_tidied() -> None:
    settings = settings_from(
        GatewaySettings, "gateway", {}, {"TOKENWIRE_GATEWAY_TOKENIZER_TARGETS": "a:1, [::1]:2,dns:///b:3"}
    )
    assert settings.tokenizer_targets == "a:1,[::1]:2,dns:b:3"


@pytest.mark.parametrize("text", ["", "host", "host:port", "a:1;b:2", "::1:5", "a:1,a:1", "file:"])
def test_a_target_that_is_none_is_refused_with_its_name_and_value(text: str) -> None:
    with pytest.raises(SettingError, match="--tokenizer-targets=.*host:port"):
        settings_from(GatewaySettings, "gateway", {"tokenizer_targets": text}, {})


def test_sizes_take_suffixes_and_limits_have_bounds() -> None:
    settings = settings_from(GatewaySettings, "gateway", {"max_body_bytes": "2M"}, {})
    assert settings.max_body_bytes == 2 * 2**20
    with pytest.raises(SettingError, match="at most 1024"):
        settings_from(GatewaySettings, "gateway", {"max_prompts": "1025"}, {})
    with pytest.raises(SettingError, match="no such setting"):
        settings_from(GatewaySettings, "gateway", {}, {"TOKENWIRE_GATEWAY_MAX_PROMPT": "3"})


def test_one_body_fits_in_the_room_of_all() -> None:
    settings = {"max_body_bytes": 8192, "max_unfinished_bytes": 4096}
    with pytest.raises(SettingError, match="--max-unfinished-bytes=4096: must be at least 8192, .*--max-body-bytes"):
        settings_from(GatewaySettings, "gateway", {name: str(value) for name, value in settings.items()}, {})
    with pytest.raises(SettingError, match="--max-unfinished-bytes=1024: must be at least 4194304"):
        settings_from(GatewaySettings, "gateway", {}, {"TOKENWIRE_GATEWAY_MAX_UNFINISHED_BYTES": "1K"})
