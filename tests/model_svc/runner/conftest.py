from collections.abc import Callable
from functools import cache

import pytest

from model_svc.engine.batch import ModelRunner
from tests.fakes.tiny_models import write_model
from tests.fakes.tiny_runner import tiny_runner_of


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of the tiny model with the given name, made once."""
    return cache(lambda name: str(write_model(tmp_path_factory.mktemp("models") / name, name)))


@pytest.fixture(scope="session")
def tiny_runner(tiny_folder: Callable[[str], str]) -> Callable[[str], ModelRunner]:
    """A runner of the tiny model with the given name, in fp32 on one thread; built once."""
    return cache(lambda name: tiny_runner_of(tiny_folder(name)))
