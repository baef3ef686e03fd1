"""The contract: its stubs are current, it lints, and everything in it is explained."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from scripts.protocol_page import descriptors
from scripts.protocol_page import page as protocol_page

ROOT = Path(__file__).parent.parent
PROTOS = sorted((ROOT / "protos" / "tokenwire").glob("*/*.proto"))
DECLARATION = re.compile(
    r"\s*(message|enum|service|rpc|oneof|(optional |repeated )?[\w.]+(<.*>)? \w+ = \d+|[A-Z_]+ = \d+)"
)


def test_the_stubs_are_those_of_the_contract() -> None:
    assert version("grpcio-tools") == "1.75.1", "another release generates stubs that protobuf 6 cannot import"
    result = subprocess.run(
        [sys.executable, "-m", "scripts.protos", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_lints_the_contract() -> None:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed: pip install buf-bin")
    result = subprocess.run([buf, "lint"], cwd=ROOT / "protos", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def buf_breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed: pip install buf-bin")
    command = [buf, "breaking", "--against", str(ROOT / "protos" / "baseline.binpb")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_clients_built_with_earlier_contracts_stay_right() -> None:
    result = buf_breaking(ROOT / "protos")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_field_that_changes_its_type_or_name_is_seen(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    common = tmp_path / "protos" / "tokenwire" / "v1" / "common.proto"
    text = common.read_text()
    changed = text.replace("  uint32 prompt_tokens = 1;", "  string prompt_tokens = 1;")
    assert changed != text
    common.write_text(changed.replace("  uint32 cached_tokens = 2;", "  uint32 reused_tokens = 2;"))
    result = buf_breaking(tmp_path / "protos")
    assert result.returncode != 0 and "prompt_tokens" in result.stdout and "cached_tokens" in result.stdout


def test_the_reference_is_that_of_the_contract() -> None:
    assert (ROOT / "docs" / "protocol.md").read_text() == protocol_page(), "run: make protos"


def test_the_reference_has_every_declaration_with_its_comment() -> None:
    page = protocol_page()
    for file in descriptors():
        for message in file.message_type:
            section = page.split(f"\n### {message.name}\n")[1].split("\n### ")[0].split("\n## ")[0]
            rows = re.findall(r"^\| `(\w+)` \| \d+ \| .+? \| (.+) \|$", section, re.MULTILINE)
            assert [name for name, _ in rows] == [field.name for field in message.field]
        for enum in file.enum_type:
            assert all(re.search(rf"^\| `{value.name}` \| \d+ \| .+ \|$", page, re.M) for value in enum.value)


def uncommented(text: str) -> list[str]:
    """Declarations without a comment on the line above."""
    lines = text.splitlines()
    return [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if DECLARATION.match(line) and not above.strip().startswith("//")
    ]


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
def test_every_declaration_is_explained(proto: Path) -> None:
    assert uncommented(proto.read_text()) == []


def test_the_check_of_comments_sees_what_is_missing() -> None:
    text = "// A.\nmessage A {\n  // Said.\n  string a = 1;\n  optional uint32 b = 2;\n  map<string, int32> c = 3;\n}\n"
    text += "enum E {\n"
    assert uncommented(text) == ["optional uint32 b = 2;", "map<string, int32> c = 3;", "enum E {"]
