"""The gateway's page in Chromium: asked, stopped, failed, by keyboard."""

from typing import Any

import pytest

from tests.fakes.tokenizer_tier import MARKUP, FakeTokenizerTier
from tests.interop.page_driver import drive
from tokenwire.requests import CancelReason

pytestmark = pytest.mark.extended

DARK = 0x60


@pytest.fixture(scope="module")
def driven_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeTokenizerTier, dict[str, Any]]:
    return drive("page.cjs", tmp_path_factory.mktemp("callers"))


@pytest.fixture
def found(driven_page: tuple[FakeTokenizerTier, dict[str, Any]]) -> dict[str, Any]:
    return driven_page[1]


def test_a_question_is_answered_token_by_token(found: dict[str, Any]) -> None:
    asked = found["ask"]
    assert (asked["focused"], asked["complaints"], asked["busy"]) == ("prompt", [], "false")
    assert asked["said"].endswith("one two three") and asked["answer"] == "one two three"
    assert asked["tokens"] == ["one", " two", " three"]
    assert "3" in asked["figures"] and "first token" in asked["figures"] and "the model ended it" in asked["figures"]
    assert "%" in asked["peek"] and "·two" in asked["peek"]
    assert asked["announced"] == "Answer: one two three"
    assert (asked["second"], asked["cleared"]) == ("four", 0)


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_kept(found: dict[str, Any]) -> None:
    assert len(set(found["ask"]["sources"])) == 1
    assert found["ask"]["stored"] == [0, 0, "", ""]


def test_an_answer_is_stopped_by_escape_and_by_the_button(
    found: dict[str, Any], driven_page: tuple[FakeTokenizerTier, Any]
) -> None:
    stream = found["stream"]
    assert (stream["during"], stream["busy"]) == ("first", "true")
    assert "you stopped it" in stream["byKey"] and "you stopped it" in stream["byButton"]
    assert stream["focused"] == "prompt"
    assert driven_page[0].cancels.count(CancelReason.CLIENT) >= 3, "the live view's scenario stops one too"
    assert driven_page[0].num_running == 0


def test_errors_say_what_happened_and_what_to_do(found: dict[str, Any]) -> None:
    errors = found["errors"]
    assert errors["role"] == "alert" and errors["again"] == 1
    assert "options.stop.max_tokens: 999 is not allowed" in errors["bad"] and "settings" in errors["bad"]
    assert "no model tier is ready" in errors["down"] and "try again" in errors["down"]
    notice, focused = errors["invalid"]
    assert notice.startswith("Temperature") and focused == ["temperature", "true"]
    assert errors["answers"] == 0, "nothing was sent"


def test_the_view_follows_the_answer_and_only_the_conversation_scrolls(found: dict[str, Any]) -> None:
    follow = found["follow"]
    assert max(follow["ends"]) < 60 and follow["scrolls"]
    for height, window in (follow["empty"], follow["full"]):
        assert height <= window


def test_settings_are_sent_as_typed_and_a_question_that_failed_is_not_sent_again(
    found: dict[str, Any],
) -> None:
    sent = found["settings"]["sent"]
    assert [body.count('"user"') for body in sent] == [1, 1, 2] and [body.count("!bad") for body in sent] == [1, 0, 0]
    for body in sent:
        assert '"temperature":0.15' in body and '"topP":0.955' in body and '"seed":"18446744073709551615"' in body
    assert found["settings"]["invalid"].startswith("Most tokens")


def test_a_view_in_which_nothing_comes_any_more_says_so(found: dict[str, Any]) -> None:
    assert found["silent"] == {"live": "live", "off": "out of reach"}


def test_markup_from_a_model_or_an_error_stays_text(found: dict[str, Any]) -> None:
    markup = found["markup"]
    assert markup["answer"] == markup["hostile"] and MARKUP in markup["failure"]
    assert (markup["elements"], markup["owned"], markup["forced"]) == (0, None, "TypeError")


def test_everything_can_be_done_with_the_keyboard(found: dict[str, Any]) -> None:
    keyboard = found["keyboard"]
    assert keyboard["toTokens"] and keyboard["toSettings"]
    assert keyboard["first"] == ["alpha", True]
    assert keyboard["next"][0] == " beta" and "%" in keyboard["next"][1] and "·beta" in keyboard["next"][1]
    assert (keyboard["last"], keyboard["outline"], keyboard["hidden"]) == (" gamma", "solid", True)
    assert keyboard["open"] and keyboard["again"] == "alpha beta gamma"


def test_a_narrow_screen_has_all_of_it(found: dict[str, Any]) -> None:
    narrow = found["narrow"]
    for name in ("chat", "live", "settings"):
        assert narrow[name][0] <= narrow[name][1], name
    assert narrow["chat"][2] and narrow["peek"] == [True, True]
    assert (narrow["chatShown"], narrow["liveShown"]) == ([True, False], [False, True])


def test_the_engine_is_drawn_as_the_tiers_say(found: dict[str, Any]) -> None:
    live = found["live"]
    assert "10.0.0.1:50053" in live["tier"] and "5 of 16, 2 wait with 300 prompt tokens" in live["tier"]
    assert (live["cells"], live["slots"]) == ([240, 60, 120], [18, 5, 2])
    assert "3 for 1.5 s" in live["tokenizers"] and "cancelled" in live["recent"]
    assert (live["paused"], live["complaints"]) == ("paused", [])


def test_a_key_is_asked_for_used_and_forgotten(found: dict[str, Any]) -> None:
    key = found["key"]
    assert "asks who calls" in key["notice"] and "admin rights" in key["hint"] and key["open"]
    assert (key["answer"], key["stored"], key["afterwards"]) == ("hello there", [0, 0, ""], "")


def test_axe_finds_nothing_in_light_and_dark_wide_and_narrow(found: dict[str, Any]) -> None:
    looks = {name: each for name, each in found["accessible"].items() if not name.endswith("ground")}
    assert len(looks) == 12 and {name: each for name, each in looks.items() if each} == {}
    for name, ground in found["accessible"].items():
        if name.endswith("ground"):
            dark = int(ground.removeprefix("rgb(").partition(",")[0]) < DARK
            assert dark == name.startswith("dark"), name
