"""The gateway's page in Chromium: what can be seen and pointed at, whatever the tokens, the times and the colours."""

from typing import Any

import pytest

from tests.interop.page_driver import drive

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return drive("page_looks.cjs", tmp_path_factory.mktemp("callers"))[1]


def test_tokens_without_text_of_their_own_can_be_pointed_at_and_are_not_copied(found: dict[str, Any]) -> None:
    shown = found["bytes"]
    assert shown["tokens"] == ["", "é", " ", "", "", "中", "", "", "", "🎉"]
    assert min(shown["sizes"]) > 0
    assert shown["reached"] == [f"token {number}" for number in range(10)]
    assert shown["copied"] == "é 中🎉"


def test_alternatives_of_one_text_are_told_apart_by_their_numbers(found: dict[str, Any]) -> None:
    rows = found["bytes"]["rows"]
    assert len(rows) == 5 and len(set(rows)) == 5 and all(row.startswith("� #") for row in rows)
    assert "“�” token 9" in found["bytes"]["announced"] and "“�” token 10" in found["bytes"]["announced"]


def test_times_that_no_tier_told_are_not_known(found: dict[str, Any]) -> None:
    assert found["times"]["cancelled"][:2] == ["times not known", 0]
    words, num_parts, _ = found["times"]["timed"]
    assert words.startswith(
        "tokenizer tier 500 µs, waiting for a step 1.0 ms, reading the prompt 2.0 ms, generating 3.0 ms"
    )
    assert num_parts >= 4 and "generating 3.0 ms" in found["times"]["legend"]


def test_a_conversation_that_is_too_long_is_advised_about_with_what_the_page_has(found: dict[str, Any]) -> None:
    failure = found["long"]["failure"]
    assert "longer than the model can read" in failure and "begin a new conversation" in failure
    assert "truncate" not in failure


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_and_tokens_stay_where_the_system_forces_its_colours(found: dict[str, Any], scheme: str) -> None:
    contrast = found["contrast"][scheme]
    for name in ("batch", "blocks", "legend", "phases", "state"):
        colours = contrast[name]
        assert len(set(colours.values())) == len(colours), (name, colours)
    assert contrast["tints"][0] != "0"
    for tint, line in zip(contrast["tints"], contrast["underlines"], strict=True):
        assert line == ("none" if tint == "0" else "underline")
    assert set(contrast["boundaries"]) == {"1px"}
