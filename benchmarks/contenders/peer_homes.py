"""Where peers are installed: a virtual environment each, outside the repository. Installs nothing."""

import json
import os
import subprocess
from pathlib import Path

from benchmarks.contenders.spec import Absent

VARIABLE = "TOKENWIRE_BENCH_HOME"
STAMP = "tokenwire-bench.json"
"""Written when an installation is complete."""


def home() -> Path:
    """`$TOKENWIRE_BENCH_HOME`, by default ~/.cache/tokenwire-bench."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/tokenwire-bench").expanduser()


def python_of(peer: str) -> Path:
    """The peer's interpreter. Raises Absent when it is not installed."""
    folder = home() / peer
    if not (folder / STAMP).is_file():
        raise Absent(f"not installed; run: python -m benchmarks.peers install {peer}")
    return folder / "bin" / "python"


def versions(peer: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Of these packages in the peer's environment; those that are not there are left out. Raises Absent."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "names = [(d.metadata['Name'] or '', d.version) for d in m.distributions()]\n"
        "found = {name.lower().replace('_', '-'): version for name, version in names}\n"
        "print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))"
    )
    told = subprocess.run([str(python_of(peer)), "-c", code, *packages], capture_output=True, text=True)
    if told.returncode:
        raise Absent(f"its interpreter does not run; install it again: python -m benchmarks.peers install {peer}")
    found: dict[str, str] = json.loads(told.stdout)
    return found
