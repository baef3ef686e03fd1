"""`make audit` ends well only where every database has answered about every release."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.audit import DATABASES, LOCK, NOT_AUDITED, VULNERABLE, main

CLEAN: dict[str, Any] = {"name": "click", "version": "8.1.8", "vulns": []}
HELD: dict[str, Any] = {
    "name": "jinja2", "version": "3.1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2025-27516"], "fix_versions": ["3.1.6"], "description": "…"}],
}  # fmt: skip
SKIPPED: dict[str, Any] = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited"}
PIP_AUDIT = """
import json, sys
words = sys.argv[1:]
answers = json.loads({answers!r})
assert words[words.index("--requirement") + 1] == {lock!r}
answer = answers[words[words.index("--vulnerability-service") + 1]]
if isinstance(answer, str):
    sys.exit("Traceback ...\\n" + answer)
with open(words[words.index("--output") + 1], "w") as file:
    json.dump({{"dependencies": answer, "fixes": []}}, file)
sys.exit(any(each.get("vulns") for each in answer))
"""


def audited(tmp_path: Path, **answers: Any) -> int:
    assert set(answers) == set(DATABASES)
    program = tmp_path / "pip_audit.py"
    program.write_text(PIP_AUDIT.format(answers=json.dumps(answers), lock=str(LOCK)))
    return main(LOCK, (sys.executable, str(program)))


def test_both_answer_and_know_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audited(tmp_path, pypi=[CLEAN], osv=[CLEAN]) == 0
    assert capsys.readouterr().out.count("1 releases, 0 advisories") == 2


def test_an_advisory_is_told_whoever_knows_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audited(tmp_path, pypi="ConnectionError: no route", osv=[CLEAN, HELD]) == VULNERABLE
    said = capsys.readouterr().out
    assert "jinja2 3.1.0: PYSEC-1 CVE-2025-27516, mended in 3.1.6" in said
    assert "NOT REACHED: ConnectionError: no route" in said


def test_a_database_that_is_not_reached_is_no_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audited(tmp_path, pypi=[CLEAN], osv="ConnectionError: no route") == NOT_AUDITED
    said = capsys.readouterr()
    assert "NOT REACHED: ConnectionError: no route" in said.out and "not done" in said.err


@pytest.mark.parametrize("answer", [[SKIPPED], [CLEAN, SKIPPED], []])
def test_an_answer_that_leaves_releases_out_is_no_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: list[Any]
) -> None:
    """Such as a mirror's in PyPI's place, for which pip-audit says that it found nothing."""
    assert audited(tmp_path, pypi=answer, osv=[CLEAN]) == NOT_AUDITED
    assert ("NO ANSWER about 1 of" in capsys.readouterr().out) == bool(answer)
