"""The Java client: built, driven by the conformance kit, and run against the real stack."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.fakes.vectors import check_vectors
from tests.interop.client_checks import check_conformance, check_example, check_secured
from tests.interop.toolchains import java_client

pytestmark = [pytest.mark.model, pytest.mark.extended]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return java_client(tmp_path_factory.mktemp("java"))


def test_the_conformance_kit(programs: Path) -> None:
    check_conformance([programs / "conformance"])


def test_vectors(programs: Path) -> None:
    check_vectors([programs / "conformance"])


def test_the_example(programs: Path, stack: Stack) -> None:
    check_example([programs / "example"], stack)


def test_over_tls_with_a_key(programs: Path, tmp_path: Path) -> None:
    check_secured([programs / "example"], tmp_path)
