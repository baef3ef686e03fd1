"""The contract: its stubs are current, it lints, and everything in it is explained."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

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
