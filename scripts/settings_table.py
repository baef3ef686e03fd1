"""Writes the tables of docs/settings.md from the settings' own dataclasses. Run by `make protos`; a test checks it."""

import dataclasses
from pathlib import Path
from typing import Any

from gateway.settings import GatewaySettings
from model_svc.settings import ModelTierSettings
from scripts.marked_section import with_section
from tokenizer_svc.settings import TokenizerTierSettings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
BEGIN, END = "<!-- settings: made by scripts/settings_table.py -->", "<!-- end of settings -->"
TIERS: list[tuple[str, str, type[Any]]] = [
    ("gateway", "gateway", GatewaySettings),
    ("tokenizer", "tokenizer_svc", TokenizerTierSettings),
    ("model", "model_svc", ModelTierSettings),
]


def table() -> str:
    """One table per tier, every setting a row."""
    parts: list[str] = []
    for tier, module, settings in TIERS:
        parts += [
            f"**{tier}**: `python -m {module} --<setting>` or `TOKENWIRE_{tier.upper()}_<SETTING>`", "",
            "| Setting | Default | What it is |", "| --- | --- | --- |",
            *(row(field) for field in dataclasses.fields(settings)), "",
        ]  # fmt: skip
    return "\n".join(parts)


def row(field: dataclasses.Field[Any]) -> str:
    """One setting."""
    default = "" if field.default == () else str(field.default)
    default = default.lower() if isinstance(field.default, bool) else default
    shown = f"`{default}`" if default else ""
    choices = "; one of " + ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
    text = field.metadata["help"] + (choices if field.metadata["choices"] else "")
    return f"| `{field.name.replace('_', '-')}` | {shown} | {text.replace('|', '&#124;')} |"


def with_table(text: str) -> str:
    """The page's text with fresh tables between its two marks."""
    return with_section(text, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
