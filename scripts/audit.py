"""Asks the advisory databases about every release that constraints.txt pins: `make audit`.

    exit 0   every database answered about every release, and none is known to be vulnerable
    exit 1   at least one is
    exit 3   none that is known, but some database did not answer, or not about all: this was no audit

pip-audit alone ends with 0 where a mirror in PyPI's place knows no advisories: it leaves out what it is not told about.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parent.parent / "constraints.txt"
DATABASES = {"pypi": "PyPI's (https://pypi.org/pypi/…/json)", "osv": "OSV's (https://api.osv.dev)"}
PIP_AUDIT = (sys.executable, "-m", "pip_audit")
VULNERABLE, NOT_AUDITED = 1, 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What one database said."""

    num_releases: int
    silent: tuple[str, ...]
    """Releases about which it said nothing."""
    found: tuple[str, ...]
    """A line for each advisory."""
    failure: str = ""
    """Why there is no answer."""

    def told(self) -> str:
        """One line."""
        if self.failure:
            return f"NOT REACHED: {self.failure}"
        if self.silent:
            some = ", ".join(self.silent[:5]) + (", …" if len(self.silent) > 5 else "")
            return f"NO ANSWER about {len(self.silent)} of {self.num_releases} releases: {some}"
        return f"{self.num_releases} releases, {len(self.found)} advisories"


def ask(database: str, lock: Path, command: Sequence[str]) -> Answer:
    """Have pip-audit ask one database about all releases of the lock."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run = subprocess.run(
            [
                *command, "--requirement", str(lock), "--no-deps", "--disable-pip", "--vulnerability-service", database,
                "--format", "json", "--output", str(report), "--progress-spinner", "off", "--aliases", "on",
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        try:
            releases: list[dict[str, Any]] = json.loads(report.read_bytes())["dependencies"]
        except (OSError, ValueError, KeyError):
            said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
            return Answer(0, (), (), said[-1][:300] if said else f"pip-audit ended with status {run.returncode}")
    silent = tuple(each["name"] for each in releases if "vulns" not in each)
    found = tuple(
        f"{each['name']} {each['version']}: {' '.join((advisory['id'], *advisory.get('aliases', ())))}"
        f", mended in {', '.join(advisory['fix_versions']) or 'no release'}"
        for each in releases
        for advisory in each.get("vulns", ())
    )
    return Answer(len(releases), silent, found)


def main(lock: Path = LOCK, command: Sequence[str] = PIP_AUDIT) -> int:
    """Ask all of them and print what they say; returns the exit status."""
    answers = {database: ask(database, lock, command) for database in DATABASES}
    for database, answer in answers.items():
        print(f"{DATABASES[database]}: {answer.told()}")
    for line in sorted({line for answer in answers.values() for line in answer.found}):
        print(f"  {line}")
    if any(answer.found for answer in answers.values()):
        return VULNERABLE
    if any(answer.failure or answer.silent or not answer.num_releases for answer in answers.values()):
        print(
            "audit: not done, since the databases above did not answer: run it where they can be reached",
            file=sys.stderr,
        )
        return NOT_AUDITED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
