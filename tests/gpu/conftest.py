"""Everything in this folder needs an NVIDIA GPU, and says so where there is none.

With GPU_TESTS_DEVICE=cpu what does not take `gpu` runs on a CPU: whether the tests themselves still fit what they test.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from model_svc.engine.batch import ModelRunner, ScheduledBatch
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.recorder import Recorder, recorded
from tests.fakes.reference import Reference
from tests.fakes.tiny_models import write_model
from tests.fakes.tiny_runner import tiny_runner_of

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
HERE = Path(__file__).parent

Start = Callable[..., TorchModelRunner]


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
def gpu() -> torch.device:
    """For what makes no sense without CUDA."""
    if DEVICE == "cpu":
        pytest.skip("a GPU itself is tested")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def start() -> Start:
    """Starts a runner of a folder that records decode steps; on a CPU, a stand-in for CUDA records them."""

    def start(folder: str | Path, **settings: Any) -> TorchModelRunner:
        if DEVICE != "cpu":
            runner = tiny_runner_of(str(folder), device=DEVICE, **settings)
            assert isinstance(runner, TorchModelRunner)
            return runner
        runner = tiny_runner_of(str(folder), cpu_kernels="off", **settings)
        limit, slots = runner.info.max_batch_size, runner.info.num_adapter_slots
        return recorded(runner, Recorder(), max_batch_size=limit, num_adapter_slots=slots)

    return start


@pytest.fixture(scope="session")
def keep_busy() -> Callable[[], None]:
    """Gives a GPU milliseconds of work, and returns at once."""
    size, times = (4096, 4) if DEVICE != "cpu" else (8, 1)
    matrix = torch.rand(size, size, device=DEVICE)

    def work() -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    return work


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch, keep_busy: Callable[[], None]) -> None:
    """Each step's launch finds a GPU that is far behind the host, as with a large model."""
    launch = TorchModelRunner.launch

    def _launch(self: TorchModelRunner, batch: ScheduledBatch) -> Any:
        keep_busy()
        return launch(self, batch)

    monkeypatch.setattr(TorchModelRunner, "launch", _launch)


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
