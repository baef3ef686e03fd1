"""Files of results: JSON, markdown and plots under one name. Measures nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"
LOADED = (
    "**The machine was not quiet while this was measured: it shows that the suite works, and is no record of speed.**"
)


def write(record: Mapping[str, Any], text: str, name: str, folder: Path | None = None) -> Path:
    """Write NAME.json and NAME.md; returns the latter. `folder`: benchmarks/results unless given."""
    target = folder or RESULTS
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    page = target / f"{name}.md"
    page.write_text(text.rstrip() + "\n")
    return page


def page(title: str, record: Mapping[str, Any], *parts: str) -> str:
    """The markdown of a result, which says so when its machine was busy with something else."""
    warning = [] if record["quiet"] else [LOADED]
    return "\n\n".join([f"# {title}", *warning, *filter(None, parts)])
