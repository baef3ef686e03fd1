"""A model on a GPU that is not the first, and one that is split over two."""

from collections.abc import Callable

import pytest
import torch

from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference, check_greedy
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_runner import tiny_runner_of

Folders = Callable[[str], str]
PROMPTS = [[5, 6, 7, 8, 9, 10] * 5, [1, 2], [3] * 11, [50, 60, 70]]
NUM_OUTPUTS = 12


@pytest.fixture(autouse=True)
def second_gpu(device: str) -> None:
    if device != "cpu" and torch.cuda.device_count() < 2:
        pytest.skip("there is no second GPU")


@pytest.mark.usefixtures("gpu")
def test_the_second_gpu_gives_the_tokens_of_the_first(folders: Folders) -> None:
    """Kernels, events and graphs go there too."""
    made = []
    with torch.cuda.device(0):  # whatever the runners make current, other tests go on with the first
        for device in ("cuda:0", "cuda:1"):
            runner = tiny_runner_of(folders("llama"), device=device)
            assert runner.info.device == device and torch.cuda.current_device() == torch.device(device).index
            made.append([outputs(each) for each in EngineLoop(runner, step_tokens=7).run(PROMPTS, NUM_OUTPUTS)])
            runner.close()
    assert made[0] == made[1]


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_two_ranks_give_the_tokens_of_transformers(
    folders: Folders, references: Callable[[str], Reference], device: str, family: str
) -> None:
    """By NCCL; this process is the first rank."""
    runner = tiny_runner_of(folders(family), device=device, tensor_parallel=2)
    try:
        assert runner.info.device.endswith("(2 ranks)")
        loop = EngineLoop(runner, step_tokens=20)
        check_greedy(loop.run(PROMPTS, NUM_OUTPUTS, staggered=True), references(family), NUM_OUTPUTS)
    finally:
        runner.close()
