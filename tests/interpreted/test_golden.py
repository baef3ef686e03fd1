"""The engine over the interpreted Triton kernels gives, token for token, what transformers' greedy loop gives."""

import random
from pathlib import Path

import pytest

from model_svc.model import triton_attention
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.reference import Reference
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of

FAMILIES = ("llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3")
"""Plain; a window; a window, a soft cap and a scale; sinks; keys larger than values."""
SPLIT = (False, True, False, True, False)
NUM_OUTPUTS = 4
RANDOM = random.Random(2)
PROMPTS = [[RANDOM.randrange(VOCAB_SIZE) for _ in range(length)] for length in (37, 1, 3, 19)]


@pytest.mark.parametrize(("family", "split"), [*zip(FAMILIES, SPLIT, strict=True)])
def test_tokens_of_a_batch_that_fills_up_in_chunks(
    family: str, split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_model(tmp_path / family, family))
    reference = Reference(folder)
    if split:
        monkeypatch.setattr(triton_attention, "LEAST_SPLIT_TOKENS", 1)
    runner = tiny_runner_of(folder, attention="triton")
    assert runner.info.attention == "triton"
    sequences = EngineLoop(runner, step_tokens=13).run(PROMPTS, NUM_OUTPUTS, staggered=True)
    for sequence, prompt in zip(sequences, PROMPTS, strict=True):
        assert outputs(sequence) == reference.greedy(prompt, NUM_OUTPUTS).token_ids
