"""A model on a GPU that is not the first: kernels, events and graphs go there too."""

from collections.abc import Callable

import pytest
import torch

from tests.fakes.engine_loop import EngineLoop
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_runner import tiny_runner_of

PROMPTS = [[5, 6, 7, 8, 9, 10] * 5, [1, 2], [3] * 11, [50, 60, 70]]
NUM_OUTPUTS = 12


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_the_second_gpu_gives_the_tokens_of_the_first(folders: Callable[[str], str]) -> None:
    made = []
    with torch.cuda.device(0):  # whatever the runners make current, other tests go on with the first
        for device in ("cuda:0", "cuda:1"):
            runner = tiny_runner_of(folders("llama"), device=device)
            assert runner.info.device == device and torch.cuda.current_device() == torch.device(device).index
            made.append([outputs(each) for each in EngineLoop(runner, step_tokens=7).run(PROMPTS, NUM_OUTPUTS)])
            runner.close()
    assert made[0] == made[1]
