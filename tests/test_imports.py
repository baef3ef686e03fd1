"""Who may import whom: the contracts of pyproject.toml, and what a thin client must not need."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fakes.only_torch import only_torch

ROOT = Path(__file__).parent.parent


def test_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("tokenwire", "grpc"),
        ("tokenwire.errors", "grpc"),
        ("tokenwire.settings", "grpc"),
        ("tokenwire.client", "torch uvloop prometheus_client grpc_health tokenizers"),
        ("tokenwire.cli.main", "torch transformers uvloop prometheus_client grpc_health tokenizers fastapi"),
        ("tokenwire.cli.tier", "grpc click"),
        ("model_svc.engine", "torch grpc"),
    ],
)
def test_modules_load_without(module: str, forbidden: str) -> None:
    """In a process where the forbidden modules cannot be imported at all."""
    block = f"import sys; sys.modules.update(dict.fromkeys({forbidden.split()!r})); import {module}"
    result = subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_clients_are_names_of_the_package() -> None:
    code = "import tokenwire, sys; assert 'grpc' not in sys.modules; from tokenwire import AsyncClient, Client;"
    code += "import tokenwire.client as c; assert (AsyncClient, Client) == (c.AsyncClient, c.Client);"
    code += "assert not hasattr(tokenwire, 'Other')"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_a_gpu_machine_runs_loads_where_only_torch_and_transformers_are(tmp_path: Path) -> None:
    """The tests for one, which are skipped or collected there, and the diagnostics."""
    environment = only_torch(tmp_path)
    collect = ["--collect-only"] if torch.cuda.is_available() else []
    for command in (("pytest", "-q", "tests/gpu", *collect), ("model_svc", "doctor")):
        run = [sys.executable, "-m", *command]
        result = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
