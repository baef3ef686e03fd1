"""Text alone in an outbox: rows as they came, merged for those who are too slow, in frames that keep their distance."""

import pytest

from tests.fakes.outbox_frames import LENGTH, is_silent, rows, take
from tokenwire.outbox import MAX_FRAME_CHARS, MAX_ROWS, TextOutbox


def test_text_alone_keeps_a_row_for_each_time_it_came() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.open(2)
    for handle, text, num_tokens in ((1, "a", 1), (2, "x", 1), (1, "", 1), (1, "bc", 2)):
        outbox.add_text(handle, text, num_tokens)
    outbox.finish(1, LENGTH)
    frame = take(outbox)
    assert rows(frame) == [(1, "a", 1), (2, "x", 1), (1, "", 1), (1, "bc", 2)]
    assert [f.handle for f in frame.finishes] == [1]


def test_a_reader_that_is_too_slow_for_rows_gets_one_per_sequence() -> None:
    outbox = TextOutbox()
    for handle in range(3):
        outbox.open(handle)
    for number in range(MAX_ROWS + 1):
        outbox.add_text(number % 3, str(number % 10), 1)
    outbox.add_text(1, "!", 1)
    found = rows(take(outbox))
    assert [handle for handle, _, _ in found] == [0, 1, 2, 1]
    for handle, text, num_tokens in found[:3]:
        numbers = range(handle, MAX_ROWS + 1, 3)
        assert text == "".join(str(number % 10) for number in numbers) and num_tokens == len(numbers)


def test_many_sequences_have_a_row_each_however_slow_their_reader() -> None:
    outbox = TextOutbox()
    handles = range(MAX_ROWS + 500)
    for handle in handles:
        outbox.open(handle)
    for _ in range(5):
        for handle in handles:
            outbox.add_text(handle, "x", 1)
    found = rows(take(outbox))
    assert len(found) < 3 * len(handles)
    texts: dict[int, str] = {}
    for handle, text, num_tokens in found:
        assert len(text) == num_tokens
        texts[handle] = texts.get(handle, "") + text
    assert texts == dict.fromkeys(handles, "x" * 5)


def test_frames_keep_their_distance_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.outbox.FRAME_GAP_S", 3600.0)
    outbox = TextOutbox()
    outbox.open(1)
    outbox.add_text(1, "at once", 1)
    assert rows(take(outbox)) == [(1, "at once", 1)]
    outbox.add_text(1, "later", 1)
    assert is_silent(outbox)
    outbox.add_text(1, "with it", 1)
    outbox._next_s = 0.0
    assert rows(take(outbox)) == [(1, "later", 1), (1, "with it", 1)]


def test_rows_that_do_not_fit_a_frame_keep_their_order() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.open(2)
    for number in range(20):
        outbox.add_text(1, f"{number:02}" * (MAX_FRAME_CHARS // 8), 1)
        outbox.add_text(2, f"{number:02}", 1)
    outbox.finish(2, LENGTH)
    texts: dict[int, str] = {1: "", 2: ""}
    frames = 0
    while outbox.num_open > 1 or len(texts[1]) < 20 * 2 * (MAX_FRAME_CHARS // 8):
        frame = take(outbox)
        frames += 1
        assert sum(map(len, frame.texts)) < 2 * MAX_FRAME_CHARS
        for handle, text, _ in rows(frame):
            texts[handle] += text
        assert not frame.finishes or texts[2] == "".join(f"{number:02}" for number in range(20))
    assert frames > 4
    assert texts[1] == "".join(f"{number:02}" * (MAX_FRAME_CHARS // 8) for number in range(20))
