"""The Go client: built, driven by the conformance kit, and run against the real stack."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Stack
from tests.fakes.vectors import check_vectors
from tests.interop.client_checks import check_conformance, check_example, check_secured

pytestmark = [pytest.mark.model, pytest.mark.extended]


def test_the_conformance_kit(go_programs: Path) -> None:
    check_conformance([go_programs / "conformance"])


def test_vectors(go_programs: Path) -> None:
    check_vectors([go_programs / "conformance"])


def test_the_example(go_programs: Path, stack: Stack) -> None:
    check_example([go_programs / "example"], stack)


def test_over_tls_with_a_key(go_programs: Path, tmp_path: Path) -> None:
    check_secured([go_programs / "example"], tmp_path)
