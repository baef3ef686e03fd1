"""Writes the module table of docs/architecture.md from the first line of each module's docstring."""

import ast
import sys
from pathlib import Path

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
            if relative.parts[:2] == ("tokenwire", "v1"):
                continue
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summary = " ".join(docstring.split("\n\n")[0].split()).replace("|", "\\|")
            lines.append(f"| `{relative}` | {summary} |")
        lines.append("")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """The page with a fresh table between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Write the page; with --check, say whether it is current instead."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = page_with_table(page)
    if "--check" in sys.argv[1:]:
        if page != fresh:
            print(f"{PAGE.relative_to(ROOT)} is not current: run `make protos`", file=sys.stderr)
        return int(page != fresh)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
