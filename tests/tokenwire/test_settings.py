from dataclasses import dataclass

import pytest

from model_svc.settings import ModelTierSettings
from tokenwire.settings import ServerSettings, SettingError, bytes_of, parse_settings, setting, settings_from


@dataclass(frozen=True, kw_only=True)
class Settings(ServerSettings):
    size: int = setting(8, "how large", minimum=1, maximum=10)
    kind: str = setting("a", "which kind", choices=("a", "b"))
    memory: int = setting(0, "how much", parse=bytes_of)


def read(flags: dict[str, str] | None = None, **environ: str) -> Settings:
    return settings_from(Settings, "model", flags or {}, {f"TOKENWIRE_MODEL_{k}": v for k, v in environ.items()})


def test_a_flag_outranks_the_environment_which_outranks_the_default() -> None:
    assert read().size == 8
    assert read(SIZE="3").size == 3
    assert read({"size": "4"}, SIZE="3").size == 4


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SIZE": "11"}, ["TOKENWIRE_MODEL_SIZE", "'11'", "at most 10"]),
        ({"SIZE": "x"}, ["TOKENWIRE_MODEL_SIZE", "'x'", "an integer"]),
        ({"KIND": "c"}, ["TOKENWIRE_MODEL_KIND", "'c'", "one of a, b"]),
        ({"MEMORY": "lots"}, ["TOKENWIRE_MODEL_MEMORY", "'lots'", "512M"]),
        ({"INSECURE": "maybe"}, ["TOKENWIRE_MODEL_INSECURE", "'maybe'", "true or false"]),
        ({"SIZZE": "3"}, ["TOKENWIRE_MODEL_SIZZE", "no such setting", "TOKENWIRE_MODEL_SIZE"]),
        ({"DRAIN_TIMEOUT_S": "nan"}, ["DRAIN_TIMEOUT_S", "a finite number"]),
        ({"DRAIN_TIMEOUT_S": "inf"}, ["DRAIN_TIMEOUT_S", "a finite number"]),
        ({"DRAIN_TIMEOUT_S": "-1"}, ["DRAIN_TIMEOUT_S", "at least 0"]),
    ],
)
def test_unknown_and_bad_settings_are_refused_with_name_value_and_what_is_allowed(
    environ: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(SettingError) as caught:
        read(**environ)
    assert all(word in str(caught.value) for word in words), caught.value


def test_variables_that_kubernetes_injects_are_passed_over() -> None:
    injected = {
        "PORT": "tcp://10.0.0.1:50053",
        "PORT_50053_TCP": "tcp://10.0.0.1:50053",
        "PORT_50053_TCP_ADDR": "10.0.0.1",
        "PORT_50053_TCP_PORT": "50053",
        "PORT_50053_TCP_PROTO": "tcp",
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "50053",
        "SERVICE_PORT_GRPC": "50053",
    }
    assert read(**injected) == Settings()


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("1K", 1024), ("512M", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("2 tb", 2 * 2**40)]
)
def test_byte_counts(text: str, value: int) -> None:
    assert bytes_of(text) == value


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(ModelTierSettings, "model", ["--help"], {})
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in ModelTierSettings.__dataclass_fields__.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"(default: {'none' if field.default == () else field.default})" in shown


def test_a_bad_flag_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(Settings, "model", ["--size", "99"], {})
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--size='99': must be at most 10" in error
