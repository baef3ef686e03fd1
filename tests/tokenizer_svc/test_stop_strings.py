from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_svc.stop_strings import StopStringMatcher

ALPHABET = "abcA é"


def oracle(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The text before the match, and the match, by trying every end and every stop string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def must_hold(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )


pieces = st.lists(st.text(ALPHABET, max_size=6), max_size=14)
stop_sets = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=5).map(tuple)


@settings(max_examples=4500, deadline=None)
@given(pieces=pieces, stops=stop_sets)
def test_equals_brute_force_whatever_the_pieces(pieces: list[str], stops: tuple[str, ...]) -> None:
    expected, expected_match = oracle("".join(pieces), stops)
    matcher = StopStringMatcher(stops)
    emitted, seen, matched = "", "", None
    for piece in pieces:
        out, matched = matcher.push(piece)
        emitted, seen = emitted + out, seen + piece
        if matched is not None:
            assert oracle(seen, stops)[1] == matched, "found as soon as it is complete"
            break
        assert len(seen) - len(emitted) == must_hold(seen, stops), "held back: what is needed and not a character more"
    if matched is None:
        emitted += matcher.flush()
    assert (emitted, matched) == (expected, expected_match)


@settings(max_examples=500, deadline=None)
@given(pieces=pieces, stops=stop_sets)
def test_included_stop_string_ends_the_text_and_delays_nothing(pieces: list[str], stops: tuple[str, ...]) -> None:
    before, match = oracle("".join(pieces), stops)
    matcher = StopStringMatcher(stops, include_stop_string=True)
    emitted, seen = "", ""
    for piece in pieces:
        out, matched = matcher.push(piece)
        emitted, seen = emitted + out, seen + piece
        if matched is not None:
            break
        assert emitted == seen
    assert emitted + matcher.flush() == before + (match or "")


def test_across_token_boundaries() -> None:
    matcher = StopStringMatcher(("\n\nUser:",))
    assert matcher.push("Yes.\n") == ("Yes.", None)
    assert matcher.push("\n") == ("", None)
    assert matcher.push("Us") == ("", None)
    assert matcher.held_back == "\n\nUs"
    assert matcher.push("er: and more") == ("", "\n\nUser:")


def test_a_false_beginning_is_released_at_once() -> None:
    matcher = StopStringMatcher(("</end>",))
    assert matcher.push("a</e") == ("a", None)
    assert matcher.push("x") == ("</ex", None)


def test_the_match_that_ends_first_wins_and_the_longest_of_those() -> None:
    assert StopStringMatcher(("abcd", "bc")).push("xabcd") == ("xa", "bc")
    assert StopStringMatcher(("bc", "abc")).push("xabcd") == ("x", "abc")


def test_a_stop_string_inside_the_beginning_of_another_is_found() -> None:
    matcher = StopStringMatcher(("aabaac", "ba"))
    assert matcher.push("aab") == ("", None)
    assert matcher.push("a") == ("aa", "ba")


def test_characters_special_to_regular_expressions() -> None:
    for stop in ("]", "^", "-", "\\", "[", "."):
        assert StopStringMatcher((stop,)).push(f"abc{stop}d") == ("abc", stop)
        assert StopStringMatcher((stop, "^-]")).push("abc d") == ("abc d", None)


def test_nothing_is_held_after_flush() -> None:
    matcher = StopStringMatcher(("STOP",))
    assert matcher.push("ST") == ("", None)
    assert matcher.flush() == "ST"
    assert matcher.flush() == ""


def test_work_per_character_does_not_depend_on_history() -> None:
    """A text that keeps beginning a long stop string: what is held stays bounded by the string, nothing is lost."""
    stop = "a" * 1000 + "b"
    matcher = StopStringMatcher((stop,))
    emitted = sum(len(matcher.push("a")[0]) for _ in range(20_000))
    assert emitted == 19_000
    assert len(matcher.held_back) == 1000
    assert matcher.push("b") == ("", stop)
