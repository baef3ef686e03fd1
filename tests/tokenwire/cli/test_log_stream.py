import pytest

from tokenwire.cli.log_stream import show_line, tidy


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("12:00:01.123 info    gateway   serving  port=1", "gateway   12:00:01.123 info    serving  port=1"),
        ("12:00:01.123 warning gateway   x", "gateway   12:00:01.123 warning x"),
        ("Traceback (most recent call last):", "gateway   Traceback (most recent call last):"),
        ("", "gateway   "),
    ],
)
def test_each_line_stands_under_its_tier_once(line: str, shown: str) -> None:
    assert tidy("gateway", line, colour=False) == shown


def test_colours_only_where_they_are_wanted() -> None:
    assert "\x1b[31m" in tidy("model", "12:00:01.123 error   model     lost", colour=True)
    assert "\x1b" not in tidy("model", "12:00:01.123 error   model     lost", colour=False)


def test_json_passes_untouched(capsys: pytest.CaptureFixture[str]) -> None:
    show_line("model", '{"level": "info"}')
    assert capsys.readouterr().err == '{"level": "info"}\n'
