"""The Node client, in TypeScript: built, driven by the conformance kit, and run against the real stack."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.fakes.background import in_background
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.vectors import check_vectors
from tests.fakes.whole_stack import whole_stack
from tests.interop.client_checks import check_conformance, check_example, check_secured

pytestmark = [pytest.mark.model, pytest.mark.extended]


def test_the_conformance_kit(node_programs: tuple[Path, Path]) -> None:
    check_conformance([node_programs[0], node_programs[1] / "conformance.js"])


def test_vectors(node_programs: tuple[Path, Path]) -> None:
    check_vectors([node_programs[0], node_programs[1] / "conformance.js"], has_json=False)


def test_the_example(node_programs: tuple[Path, Path], stack: Stack) -> None:
    check_example([node_programs[0], node_programs[1] / "example.js"], stack)


def test_over_tls_with_a_key(node_programs: tuple[Path, Path], tmp_path: Path) -> None:
    check_secured([node_programs[0], node_programs[1] / "example.js"], tmp_path)


def test_500_requests_on_one_session_one_of_them_without_credit(
    node_programs: tuple[Path, Path], tmp_path: Path
) -> None:
    node, programs = node_programs
    stack = whole_stack(write_folder(tmp_path / "tiny-model"), mock_step_ms=20.0, max_batch_size=512)
    with in_background(stack) as running:
        command = [node, programs / "load.js", "--target", running.gateway.grpc_target, "--held", "true"]
        run = subprocess.run([*map(str, command), "--tokens", "20"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["requests"] == 500 and told["tokens"] == 499 * 20
    assert told["held_at_the_end"] and told["first_tokens"] == 20
