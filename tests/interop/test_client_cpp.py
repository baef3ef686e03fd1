"""The C++ client: built, driven by the conformance kit, and run against the real stack."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.fakes.vectors import check_vectors
from tests.interop.client_checks import check_conformance, check_example, check_secured

pytestmark = [pytest.mark.model, pytest.mark.extended]


def test_the_conformance_kit(cpp_programs: Path) -> None:
    check_conformance([cpp_programs / "conformance"])


def test_vectors(cpp_programs: Path) -> None:
    check_vectors([cpp_programs / "conformance"])


def test_the_example(cpp_programs: Path, stack: Stack) -> None:
    check_example([cpp_programs / "example"], stack)


def test_over_tls_with_a_key(cpp_programs: Path, tmp_path: Path) -> None:
    check_secured([cpp_programs / "example"], tmp_path)
