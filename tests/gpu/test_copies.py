"""Copies to and from a GPU that is far behind the host: what was sent is what it reads, and what it made is read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model_svc.runner.model_runner import TorchModelRunner
from model_svc.runner.transfer import HostCopies, StagingBlock
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.embeddings import EmbeddingOptions, Pooling

PROMPTS = [[(5 * j + i) % VOCAB_SIZE for j in range(1 + 40 * i % 67)] for i in range(8)]
NUM_VALUES = 16384


@pytest.fixture
def keep_busy(device: str) -> Callable[[], None]:
    """Gives a GPU milliseconds of work, and returns at once."""
    size, times = (4096, 4) if device != "cpu" else (8, 1)
    matrix = torch.rand(size, size, device=device)

    def work() -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    return work


def test_a_block_that_is_written_again_and_again(device: str, keep_busy: Callable[[], None]) -> None:
    where = torch.device(device)
    block = StagingBlock(NUM_VALUES, where)
    read: list[HostCopies] = []
    for number in range(12):
        keep_busy()
        (sent,) = block.upload([np.full(NUM_VALUES, number)])
        read.append(HostCopies([sent * 2], where))
    assert [copies.wait()[0].unique().tolist() for copies in read] == [[2 * number] for number in range(12)]


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
def test_prompts_in_chunks_on_a_gpu_that_is_behind(
    folders: Callable[[str], str],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    keep_busy: Callable[[], None],
    overlap: bool,
    graphs: str,
) -> None:
    """Most steps are chunks alone, of which nothing comes down; beside them sequences that are embedded."""
    runner = tiny_runner_of(folders("llama"), device=device, cuda_graphs=graphs)
    launch = TorchModelRunner.launch

    def behind(self: TorchModelRunner, batch: Any) -> Any:
        keep_busy()
        return launch(self, batch)

    made: list[Any] = []
    for is_behind in (False, True):
        if is_behind:
            monkeypatch.setattr(TorchModelRunner, "launch", behind)
        loop = EngineLoop(runner, step_tokens=7, overlap=overlap)
        generating = [loop.sequence(prompt, 6) for prompt in PROMPTS]
        embedded = [loop.sequence(prompt, 0, embedding=EmbeddingOptions(Pooling.MEAN)) for prompt in PROMPTS]
        loop.serve([*generating, *embedded])
        vectors = [np.frombuffer(each.vector or b"", dtype=np.float32) for each in embedded]
        made.append((list(map(outputs, generating)), vectors))
    (wanted, wanted_vectors), (found, found_vectors) = made
    assert found == wanted
    assert all(np.allclose(*pair, atol=1e-5) for pair in zip(found_vectors, wanted_vectors, strict=True))
