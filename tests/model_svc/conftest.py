from collections.abc import Callable
from functools import cache

import pytest

from model_svc.engine.batch import ModelRunner
from model_svc.runner import build_runner
from model_svc.settings import EngineSettings
from tests.fakes.tiny_models import write_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of the tiny model with the given name, made once."""
    return cache(lambda name: str(write_model(tmp_path_factory.mktemp("models") / name, name)))


@pytest.fixture(scope="session")
def tiny_runner(tiny_folder: Callable[[str], str]) -> Callable[[str], ModelRunner]:
    """A runner of the tiny model with the given name, in fp32 on one thread; built once."""
    return cache(
        lambda name: build_runner(
            EngineSettings(
                model=tiny_folder(name), device="cpu", dtype="float32", threads=1, block_size=4, max_batch_size=32,
                kv_memory=16 * 2**20,
            )
        )
    )  # fmt: skip
