"""The conformance kit against the real stack with the default model."""

import json
import subprocess
import sys

import pytest

from tests.e2e.conftest import Stack

pytestmark = [pytest.mark.model, pytest.mark.extended]


def test_the_conformance_kit_passes(stack: Stack) -> None:
    command = [sys.executable, "-m", "tokenwire.cli.main", "conformance", "--target", stack.grpc_target, "--json"]
    run = subprocess.run([*command, "--timeout", "90"], capture_output=True, text=True, timeout=600)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [result for result in results if result["outcome"] == "fail"] == [] and run.returncode == 0, run.stderr
    assert [result["name"] for result in results if result["outcome"] == "skip"] == ["auth.refused"]
    assert len(results) > 50
