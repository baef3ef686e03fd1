"""Everything in this folder needs an NVIDIA GPU, and says so where there is none.

With GPU_TESTS_DEVICE=cpu what takes its `device` runs on a CPU: whether the tests themselves still fit what they test.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from model_svc.engine.batch import ModelRunner
from tests.fakes.reference import Reference
from tests.fakes.tiny_models import write_model
from tests.fakes.tiny_runner import tiny_runner_of

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    is_there = DEVICE == "cpu" or torch.cuda.is_available()
    absent = "" if is_there else f"no GPU: torch {torch.__version__} finds no CUDA device"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if absent:
                item.add_marker(pytest.mark.skip(reason=absent))


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of the tiny model of a family, made once."""
    return cache(lambda family: str(write_model(tmp_path_factory.mktemp("models") / family, family)))


@pytest.fixture(scope="session")
def runners(folders: Callable[[str], str]) -> Callable[[str], ModelRunner]:
    """A runner of a family on the GPU in fp32, made once."""
    return cache(lambda family: tiny_runner_of(folders(family), device=DEVICE))


@pytest.fixture(scope="session")
def references(folders: Callable[[str], str]) -> Callable[[str], Reference]:
    """`transformers` on the GPU in fp32."""
    return cache(lambda family: Reference(folders(family), DEVICE))
