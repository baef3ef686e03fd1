"""The documents name only what exists, their links lead somewhere, and the tables of settings are those of the code."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from scripts.dashboards import FOLDER, files
from scripts.metrics_table import metrics
from scripts.metrics_table import with_table as with_metrics
from scripts.module_table import page_with_table
from scripts.settings_table import TIERS, with_table
from tokenwire.cli.doctor import SHARED_VARIABLES
from tokenwire.cli.main import cli
from tokenwire.settings import argument_parser
from tokenwire.telemetry import UNITS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
GUIDE = "\n".join([README, SETTINGS, (ROOT / "docs" / "running.md").read_text()])
"""What a newcomer reads and types."""
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
MAKEFILE = (ROOT / "Makefile").read_text()


def code(text: str) -> str:
    """What stands in code blocks and between backticks."""
    found = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    return "\n".join(block or inline for block, inline in found)


def test_make_targets_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code(GUIDE)))
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert {"up", "demo", "test", "help"} <= named
    assert named <= targets


def test_every_make_target_is_in_its_help() -> None:
    phony = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
    assert phony == set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))


def test_commands_and_their_options_exist() -> None:
    call = re.compile(r"(?:^|/|\s)tokenwire (?!import )[a-z]")
    lines = [line for line in re.split(r"[\n;]", code(GUIDE)) if call.search(line)]
    assert lines
    for line in lines:
        words = line[re.search(r"tokenwire (?=[a-z])", line).end() :].split("#")[0].split()  # type: ignore[union-attr]
        command: click.Command = cli
        while isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
            if not words:
                break
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_environment_variables_exist() -> None:
    known = set(SHARED_VARIABLES)
    for tier, _, settings in TIERS:
        known |= {f"TOKENWIRE_{tier.upper()}_{field.name.upper()}" for field in dataclasses.fields(settings)}
    assert set(re.findall(r"\bTOKENWIRE_[A-Z_]*[A-Z]\b(?!_)(?!_?<)", GUIDE)) <= known


def test_files_exist() -> None:
    paths = re.findall(r"\b(?:clients|scripts|docs|protos)/[\w./-]+\w", README)
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    page = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_document_is_in_the_list_of_the_readme() -> None:
    found = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"^- \[(docs/[\w-]+\.md)\]\(\1\)", README, re.MULTILINE)) == found


def test_the_settings_table_is_current() -> None:
    assert with_table(SETTINGS) == SETTINGS, "run: make protos"


def test_the_module_table_is_current() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page_with_table(page) == page, "run: make protos"


def test_files_named_in_the_architecture_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = set(re.findall(r"`((?:gateway|tokenizer_svc|model_svc|tokenwire|tests)/[\w./]+)`", page))
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("tier", "module", "settings"), TIERS, ids=[tier for tier, _, _ in TIERS])
def test_the_settings_table_says_what_help_says(tier: str, module: str, settings: type) -> None:
    parser = argument_parser(settings, tier)
    flags = {action.option_strings[0].removeprefix("--") for action in parser._actions if action.dest != "help"}
    section = SETTINGS.split(f"**{tier}**: `python -m {module}")[1].split("**")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", section, re.MULTILINE)) == flags


def test_the_dashboards_are_current() -> None:
    written = files()
    assert {path.name for path in written} == {path.name for path in FOLDER.glob("*.json")}
    assert all(path.read_text() == text for path, text in written.items()), "run: make protos"


def test_the_metrics_table_is_current() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    assert with_metrics(page) == page, "run: make protos"


def test_metrics_that_are_named_exist() -> None:
    known = {each.name for described in metrics().values() for each in described}
    adapter = ROOT / "deploy" / "kubernetes" / "components" / "autoscaling" / "prometheus-adapter.yaml"
    known |= set(re.findall(r"name: { as: (\w+) }", adapter.read_text()))  # made of others
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.y*ml"), *(ROOT / "deploy").rglob("*.json")]
    named = re.compile(r"\btokenwire_(?:gateway|tokenizer|model)_[a-z_]+_(?:" + "|".join(UNITS) + r")\b(?!:)")
    for page in pages:
        assert set(named.findall(page.read_text())) <= known, page
