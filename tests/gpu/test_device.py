"""What start-up and the hot path promise of a GPU itself."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from model_svc import doctor_gpu
from model_svc.engine.batch import ScheduledBatch, ScheduledRow
from model_svc.runner.gpu_check import copy_bandwidth
from model_svc.runner.gpu_start import prepare_gpu
from model_svc.runner.memory import peak_bytes
from model_svc.runner.model_runner import TorchModelRunner
from tests.fakes.step_loop import StepLoop
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.checks import Status
from tokenwire.sampling import NEUTRAL, SamplingParams

Folders = Callable[[str], str]


def test_this_gpu_may_be_used() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    prepare_gpu(torch.device("cuda", 0))
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    speed = copy_bandwidth("cuda:0")
    assert speed.on_device > speed.pinned > 0 and speed.pageable > 0


def test_the_diagnostics_of_this_gpu() -> None:
    gpu, health, copies = doctor_gpu.check_gpus()[:3]
    assert (gpu.status, copies.status) == (Status.OK, Status.OK)
    assert "compute capability" in gpu.detail and "GB/s" in copies.detail
    assert health.status in (Status.OK, Status.WARN) and health.detail


def test_what_the_host_fills_is_pinned(folders: Folders, device: str) -> None:
    runner: Any = tiny_runner_of(folders("llama"), device=device)
    buffers = runner._input_batch._ring
    assert buffers
    assert all(buffer._host.is_pinned() for buffer in buffers)


def test_the_peak_of_some_work_is_measured() -> None:
    device = torch.device("cuda", 0)

    def work() -> None:
        torch.zeros(64 * 2**20, dtype=torch.uint8, device=device)

    assert 64 * 2**20 <= peak_bytes(device, work) < 80 * 2**20
    assert peak_bytes(device, lambda: None) == 0


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


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize(
    "sampling",
    [replace(NEUTRAL, seed=0), SAMPLED, replace(SAMPLED, repetition_penalty=1.2, logit_bias=((3, 1.0),))],
    ids=["greedy", "sampled", "penalised"],
)
def test_the_host_waits_for_nothing_but_the_end_of_a_step(
    folders: Folders, device: str, sampling: SamplingParams, logprobs: int | None, graphs: str
) -> None:
    """A decode step under torch's sync debug mode: whatever waits for the device on the way raises."""
    runner = tiny_runner_of(folders("llama"), device=device, cuda_graphs=graphs)
    assert isinstance(runner, TorchModelRunner)
    loop = StepLoop(runner)
    sequences = [loop.add([5, 6, 7, number], 8, sampling, logprobs=logprobs) for number in range(4)]
    loop.step()
    loop.step()
    for sequence in sequences:
        sequence.block_table += [loop.free.pop()]
    batch = ScheduledBatch(tuple(ScheduledRow(sequence, 1) for sequence in sequences))
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = runner.launch(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(runner.collect(launched).token_ids) == 4
