"""Writes the module table of docs/architecture.md from each module's first lines. Run by `make protos`."""

import ast
from pathlib import Path

from scripts.marked_section import with_section

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("gateway", "tokenizer_svc", "model_svc", "tokenwire")
BEGIN, END = "<!-- modules: begin -->", "<!-- modules: end -->"


def table() -> str:
    """The table, one section per package; generated stubs are left out."""
    lines: list[str] = []
    for package in PACKAGES:
        lines += [f"**{package}**", "", "| module | |", "|---|---|"]
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if relative.parts[:2] in (("tokenwire", "v1"), ("tokenwire", "kserve"), ("tokenwire", "xds")):
                continue
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summary = " ".join(docstring.split("\n\n")[0].split()).replace("|", "\\|")
            lines.append(f"| `{relative}` | {summary} |")
        lines.append("")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """The page with a fresh table between its marks."""
    return with_section(page, BEGIN, END, table() + "\n")


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
