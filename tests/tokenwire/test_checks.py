"""Findings: their JSON round trip and their lines."""

import pytest

from tokenwire.checks import Check, blocked, fail, from_json, ok, to_json, to_lines, warn

FOUND = [ok("cpu", "fine"), warn("disk space", "little", "free some"), fail("port 1", "taken", "stop it")]


def test_json_round_trip() -> None:
    assert from_json(to_json(FOUND)) == FOUND


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checks": [{}]}', '{"checks": 3}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(text)


@pytest.mark.parametrize(("found", "expected"), [(FOUND, True), (FOUND[:2], False), ([], False)])
def test_only_failures_block(found: list[Check], expected: bool) -> None:
    assert blocked(found) is expected


def test_lines_are_aligned_and_say_what_to_do() -> None:
    assert list(to_lines(FOUND)) == [
        "ok    cpu         fine",
        "warn  disk space  little",
        "                  → free some",
        "FAIL  port 1      taken",
        "                  → stop it",
    ]
