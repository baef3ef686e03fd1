"""The page on threats names tests that there are, and each thing that stands against something is shown by one."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/threat-model.md").read_text()


def test_every_threat_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| Wants ", "| --- "))]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)`", row.rpartition(" | ")[2])
        assert named, row
        for name in named:
            assert (TESTS / name).is_file(), name


def test_all_tests_of_this_folder_are_on_the_page() -> None:
    own = {f"security/{path.name}" for path in Path(__file__).parent.glob("test_*.py")} - {
        "security/test_threat_model.py"
    }
    assert own == set(re.findall(r"`(security/\w+\.py)`", PAGE))
