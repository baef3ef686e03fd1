"""One finding of the diagnostics, and how a list of them is passed between processes. Checks nothing itself."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    """Serving works, less well or not for everything."""
    FAIL = "fail"
    """Serving is blocked."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, what was found, and for a warning or failure what to do."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    """A finding that needs nothing."""
    return Check(name, Status.OK, detail)


def warn(name: str, detail: str, fix: str) -> Check:
    """A finding that lessens serving; `fix` says what to do."""
    return Check(name, Status.WARN, detail, fix)


def fail(name: str, detail: str, fix: str) -> Check:
    """A finding that blocks serving; `fix` says what to do."""
    return Check(name, Status.FAIL, detail, fix)


def blocked(checks: Iterable[Check]) -> bool:
    """Whether any of them blocks serving."""
    return any(check.status is Status.FAIL for check in checks)


def to_json(checks: Iterable[Check]) -> str:
    """`{"ok": bool, "checks": [{name, status, detail, fix}]}`, indented."""
    found = list(checks)
    return json.dumps({"ok": not blocked(found), "checks": [asdict(check) for check in found]}, indent=2)


def from_json(text: str) -> list[Check]:
    """The inverse of `to_json`; raises ValueError, KeyError or TypeError for anything else."""
    entries = json.loads(text)["checks"]
    return [Check(entry["name"], Status(entry["status"]), entry["detail"], entry["fix"]) for entry in entries]


def to_lines(checks: Iterable[Check]) -> Iterable[str]:
    """One aligned line per check, and one more for what to do."""
    found = list(checks)
    width = max((len(check.name) for check in found), default=0)
    for check in found:
        word = "FAIL" if check.status is Status.FAIL else str(check.status)
        yield f"{word:<4}  {check.name:<{width}}  {check.detail}"
        if check.fix:
            yield f"{'':<4}  {'':<{width}}  → {check.fix}"
