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
from tests.interop.toolchains import node_client

pytestmark = [pytest.mark.model, pytest.mark.extended]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return node_client(tmp_path_factory.mktemp("node"))


def test_the_conformance_kit(programs: tuple[Path, Path]) -> None:
    check_conformance([programs[0], programs[1] / "conformance.js"])


def test_vectors(programs: tuple[Path, Path]) -> None:
    check_vectors([programs[0], programs[1] / "conformance.js"], has_json=False)


def test_the_example(programs: tuple[Path, Path], stack: Stack) -> None:
    check_example([programs[0], programs[1] / "example.js"], stack)


def test_over_tls_with_a_key(programs: tuple[Path, Path], tmp_path: Path) -> None:
    check_secured([programs[0], programs[1] / "example.js"], tmp_path)


def test_500_requests_on_one_session_one_of_them_without_credit(programs: tuple[Path, Path], tmp_path: Path) -> None:
    stack = whole_stack(write_folder(tmp_path / "tiny-model"), mock_step_ms=20.0, max_batch_size=512)
    with in_background(stack) as running:
        command = [programs[0], programs[1] / "load.js", "--target", running.gateway.grpc_target, "--held", "true"]
        run = subprocess.run([*map(str, command), "--tokens", "20"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["requests"] == 500 and told["tokens"] == 499 * 20
    assert told["held_at_the_end"] and told["first_tokens"] == 20
