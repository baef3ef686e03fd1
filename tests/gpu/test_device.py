"""What start-up and the hot path promise of a GPU itself."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from model_svc import doctor_gpu
from model_svc.engine.batch import ScheduledBatch
from model_svc.runner.gpu_check import copy_bandwidth
from model_svc.runner.gpu_start import prepare_gpu
from model_svc.runner.memory import peak_bytes
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.embeddings import of_all_kinds
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.tiny_models import VOCAB_SIZE
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.checks import Status
from tokenwire.sampling import NEUTRAL

Folders = Callable[[str], str]


@pytest.mark.usefixtures("gpu")
def test_this_gpu_may_be_used() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    prepare_gpu(torch.device("cuda", 0))
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    speed = copy_bandwidth("cuda:0")
    assert speed.on_device > speed.pinned > 0 and speed.pageable > 0


@pytest.mark.usefixtures("gpu")
def test_the_diagnostics_of_this_gpu() -> None:
    gpu, health, copies = doctor_gpu.check_gpus()[:3]
    assert (gpu.status, copies.status) == (Status.OK, Status.OK)
    assert "compute capability" in gpu.detail and "GB/s" in copies.detail
    assert health.status in (Status.OK, Status.WARN) and health.detail


@pytest.mark.usefixtures("gpu")
def test_what_the_host_fills_is_pinned(folders: Folders, device: str) -> None:
    runner: Any = tiny_runner_of(folders("llama"), device=device)
    buffers = runner._input_batch._ring
    assert buffers
    assert all(buffer._host.is_pinned() for buffer in buffers)


def test_the_peak_of_some_work_is_measured(gpu: torch.device) -> None:
    def work() -> None:
        torch.zeros(64 * 2**20, dtype=torch.uint8, device=gpu)

    assert 64 * 2**20 <= peak_bytes(gpu, work) < 80 * 2**20
    assert peak_bytes(gpu, lambda: None) == 0


@pytest.mark.usefixtures("gpu")
def test_the_cache_is_sized_from_what_a_step_takes(
    folders: Folders, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        info = tiny_runner_of(folders("llama"), device=device, kv_memory=0, max_step_tokens=4096).info
    assert "device" in info.phases_s and "memory" in info.phases_s
    (record,) = [record for record in caplog.records if record.getMessage().startswith("memory of cuda")]
    told = record.tokenwire_fields  # type: ignore[attr-defined]
    assert told["step_bytes"] > 0 and told["kv_blocks"] == info.num_blocks


SAMPLED = replace(NEUTRAL, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3)
KINDS: list[dict[str, Any]] = [
    {}, {"sampling": SAMPLED}, {"sampling": replace(SAMPLED, repetition_penalty=1.2, logit_bias=((3, 1.0),))},
    {"logprobs": 2, "prompt_logprobs": 1},
]  # fmt: skip
PROMPTS = [[(7 * i + j * j) % VOCAB_SIZE for j in range(1 + 5 * i % 23)] for i in range(9)]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, device: str) -> list[bool]:
    """Once it is not empty, whatever waits for the GPU in a step's launch raises: torch's sync debug mode."""
    launch = TorchModelRunner.launch
    on: list[bool] = []

    def _launch(self: TorchModelRunner, batch: ScheduledBatch) -> Any:
        if not on or device == "cpu":
            return launch(self, batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TorchModelRunner, "launch", _launch)
    return on


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapped"])
@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_the_host_waits_for_nothing_but_the_end_of_a_step(
    start: Callable[..., TorchModelRunner], folders: Folders, watched: list[bool], graphs: str, overlap: bool
) -> None:
    """Prompts, their chunks beside decodes, decodes alone, embeddings; once before, when what is needed is compiled."""
    runner = start(folders("llama"), cuda_graphs=graphs)
    for _ in range(2):
        loop = EngineLoop(runner, step_tokens=20, overlap=overlap)
        for fields in KINDS:
            loop.run(PROMPTS, 6, staggered=True, **fields)
        loop.serve(of_all_kinds(PROMPTS) + [loop.sequence(prompt, 6) for prompt in PROMPTS], staggered=True)
        assert not [terminal.error for terminal in loop.terminals.values() if terminal.error is not None]
        watched.append(True)
