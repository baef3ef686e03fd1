"""Weights quantised by torchao on a GPU: the model is served, replayed, and near what it was."""

from collections.abc import Callable

import pytest
import torch

from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs

PROMPTS = [[7, 3, 9, 40, 41], [1], [60, 2] * 8, [11, 12, 13]]
NUM_OUTPUTS = 12
MOST_APART = {"int8": 0.1, "fp8": 0.3, "int4": 0.8}
"""Mean difference of log-probabilities from float32, bfloat16's own included."""


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
@pytest.mark.parametrize("mode", MOST_APART)
def test_a_quantised_model(
    start: Callable[..., TorchModelRunner],
    folders: Callable[[str], str],
    references: Callable[[str], Reference],
    device: str,
    mode: str,
    overlap: bool,
) -> None:
    """Teacher-forced, as in `test_bf16_decodes_near_fp32`."""
    if device != "cpu":
        pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    if mode == "fp8" and (device == "cpu" or torch.cuda.get_device_capability() < (8, 9)):
        pytest.skip("fp8 needs a GPU of compute capability 8.9")
    runner = start(folders("llama"), quantization=mode, dtype="bfloat16")
    loop = EngineLoop(runner, overlap=overlap)
    for sequence in loop.run(PROMPTS, NUM_OUTPUTS, logprobs=0):
        wanted = references("llama").logprobs(sequence.token_ids)[sequence.num_prompt_tokens - 1 :]
        target = torch.tensor(outputs(sequence), device=wanted.device)[:, None]
        found = torch.tensor([entry.logprob for entry in loop.runner.logprobs[sequence.sequence_id]])
        apart = (found - wanted.gather(-1, target)[:, 0].cpu()).abs().mean()
        assert apart < MOST_APART[mode]
    assert runner._graphs is not None and runner._graphs.num_replays > 0
