"""Lines, whatever pieces they come in, and too long ones."""

import json

import pytest

from tokenwire.cli.log_lines import Lines
from tokenwire.cli.log_stream import cut_line


@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_are_lines_whatever_pieces_they_come_in(size: int) -> None:
    said = b"one\n\n" + b"x" * 25 + b'{"tier": "model"}\nthree'
    lines = Lines(10)
    found = [line for at in range(0, len(said), size) for line in lines.add(said[at : at + size])]
    assert [*found, *lines.end()] == [(b"one", 0), (b"", 0), (b"x" * 10, 32), (b"three", 0)]
    assert list(lines.end()) == []


def test_what_was_cut_says_so_and_json_stays_json() -> None:
    assert cut_line("model", "12:00 readable", 7) == "12:00 readable … (7 bytes more)"
    event = json.loads(cut_line("model", '{"tier": "model", "x": "' + "y" * 70_000, 7))
    assert (event["tier"], event["level"], event["dropped_bytes"]) == ("model", "warning", 7)
    assert event["began"].startswith('{"tier": "model", "x": "y') and len(event["began"]) <= 1024
