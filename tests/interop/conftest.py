"""The real stack for other people's clients, that of tests/e2e, and the clients of clients/, each built once."""

from pathlib import Path

import pytest

from tests.e2e.conftest import model_folder, reference, stack
from tests.interop import toolchains

__all__ = ["model_folder", "reference", "stack"]


@pytest.fixture(scope="session")
def go_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toolchains.go_client(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="session")
def node_programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Node, and the folder."""
    return toolchains.node_client(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="session")
def java_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toolchains.java_client(tmp_path_factory.mktemp("java"))


@pytest.fixture(scope="session")
def cpp_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toolchains.cpp_client(tmp_path_factory.mktemp("cpp"))
