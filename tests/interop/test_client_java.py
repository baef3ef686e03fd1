"""The Java client: built, driven by the conformance kit, and run against the real stack."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.fakes.vectors import check_vectors
from tests.interop.client_checks import check_conformance, check_example, check_secured

pytestmark = [pytest.mark.model, pytest.mark.extended]


def test_the_conformance_kit(java_programs: Path) -> None:
    check_conformance([java_programs / "conformance"])


def test_vectors(java_programs: Path) -> None:
    check_vectors([java_programs / "conformance"])


def test_the_example(java_programs: Path, stack: Stack) -> None:
    check_example([java_programs / "example"], stack)


def test_over_tls_with_a_key(java_programs: Path, tmp_path: Path) -> None:
    check_secured([java_programs / "example"], tmp_path)
