"""The gateway's page in Chromium: keys that cannot be sent, are wrong, or are taken away."""

from typing import Any

import pytest

from tests.interop.page_driver import drive

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return drive("page_keys.cjs", tmp_path_factory.mktemp("callers"))[1]


def test_a_key_that_no_header_can_carry_is_an_invalid_field_and_asks_nothing(found: dict[str, Any]) -> None:
    unsendable = found["unsendable"]
    for words in (unsendable["notice"], unsendable["hint"]):
        assert words.startswith("API key: ") and "ASCII" in words
    assert (unsendable["invalid"], unsendable["focused"]) == ("true", "key")
    assert (unsendable["requests"], unsendable["answers"]) == ([], 0)
    assert unsendable["afterwards"] == [None, True]


def test_a_wrong_key_is_told_from_none_in_the_servers_words(found: dict[str, Any]) -> None:
    wrong = found["wrong"]
    assert wrong["none"].startswith("The server asks who calls. Enter an API key")
    for words in (wrong["notice"], wrong["hint"], wrong["failure"]):
        assert "the API key is not known here" in words and "does not take the key" in words


def test_a_key_that_is_given_back_shows_the_engine_again(found: dict[str, Any]) -> None:
    state, hint = found["restored"]["revoked"]
    assert state == "not shown" and "the API key is not known here" in hint
    assert found["restored"]["restored"] == "live"
