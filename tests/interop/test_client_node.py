"""The Node client, in TypeScript: built, driven by the conformance kit, and run against the real stack."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.fakes.vectors import check_vectors
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
