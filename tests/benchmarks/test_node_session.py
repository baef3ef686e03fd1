"""The benchmark of the Node client's Session: its page, and what it refuses."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from benchmarks import node_session
from benchmarks.mock_stack import MockStack


def told(p99_ms: float) -> dict[str, Any]:
    return {"tokens": 4990, "seconds": 2.0, "gap_ms_p50": 20.0, "gap_ms_p99": p99_ms, "gap_ms_max": 50.0}


def test_the_page_says_the_ratio() -> None:
    turns = {"undisturbed": [told(20.0), told(30.0)], "one held": [told(22.0), told(30.0)]}
    record = {
        "title": node_session.TITLE, "quiet": True, "date": "2026-01-01", "requests": 500, "output_tokens": 10,
        "rounds": 2, "node": "v24", "figures": {"turns": turns, "p99_ratio_median": 1.05, "p99_ratios": [1.1, 1.0]},
        "machine": {"cpu": "x", "cores": 2, "memory_gib": 1, "commit": "c", "quiet": True, "load": 0.1, "python": "3"},
    }  # fmt: skip
    page = node_session.text_of(record)
    assert "1.05 times" in page and "| one held    | 20.0 | 26.0 | 50.0    | 2,495    |" in page


@pytest.mark.parametrize(
    ("tokens", "first", "held", "fine"), [(998, 2, True, True), (997, 2, True, False), (998, 2, False, False)]
)
def test_what_the_client_counts_is_checked(tmp_path: Path, tokens: int, first: int, held: bool, fine: bool) -> None:
    found = {"tokens": tokens, "first_tokens": first, "held_at_the_end": held}
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    node.chmod(node.stat().st_mode | stat.S_IXUSR)
    stack: Any = MockStack("127.0.0.1", 0, 1, None)  # type: ignore[arg-type]
    if fine:
        assert node_session.turn(str(node), tmp_path / "load.js", stack, 500, 2, "one held") == found
    else:
        with pytest.raises(RuntimeError, match="something else"):
            node_session.turn(str(node), tmp_path / "load.js", stack, 500, 2, "one held")


def test_a_program_that_was_not_built_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    with pytest.raises(SystemExit) as caught:
        node_session.main(["--program", str(tmp_path / "load.js"), "--out", str(tmp_path)])
    assert caught.value.code == 2 and "npm run build" in capsys.readouterr().err
