import pytest

from tokenwire.cutting import MAX_TOLD_BYTES, cut


@pytest.mark.parametrize("text", ["", "short", "x" * MAX_TOLD_BYTES, "é" * (MAX_TOLD_BYTES // 2)])
def test_what_fits_is_left_alone(text: str) -> None:
    assert cut(text) is text


@pytest.mark.parametrize("character", ["x", "é", "€", "😀", "\ud800"])
@pytest.mark.parametrize("length", [MAX_TOLD_BYTES + 1, 4 * 2**20])
def test_what_does_not_is_cut_between_characters_and_says_how_long_it_was(character: str, length: int) -> None:
    found = cut(character * length)
    size = length * len(character.encode(errors="replace"))
    assert MAX_TOLD_BYTES - 4 < len(found.encode()) <= MAX_TOLD_BYTES
    assert found.endswith(f"… ({size} bytes)")
    assert set(found.partition("…")[0]) == {character if character != "\ud800" else "?"}
