"""Which decode steps are to be recorded at all."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from model_svc.model.attention import SdpaBackend
from model_svc.runner.graph_start import why_not_recorded
from model_svc.settings import EngineSettings

triton_attention = pytest.importorskip("model_svc.model.triton_attention", reason="Triton is not installed")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SETTINGS = EngineSettings(model="a folder")


def test_on_a_gpu_over_a_backend_that_reads_keys_where_they_lie() -> None:
    assert why_not_recorded(SETTINGS, GPU, triton_attention.TritonBackend(CPU)) is None


@pytest.mark.parametrize(
    ("device", "changed", "why"),
    [
        (CPU, {}, "the device is cpu"),
        (GPU, {"cuda_graphs": "off"}, "cuda_graphs is off"),
        (GPU, {"tensor_parallel": 2}, "the model is split over several ranks"),
    ],
)
def test_otherwise_not(device: torch.device, changed: dict[str, Any], why: str) -> None:
    backend = triton_attention.TritonBackend(CPU)
    assert why_not_recorded(replace(SETTINGS, **changed), device, backend) == why


def test_not_over_one_that_gathers() -> None:
    """What it gathers for a row goes to the longest context, and there a broken sequence may have left a NaN."""
    assert why_not_recorded(SETTINGS, GPU, SdpaBackend()) == "attention sdpa gathers keys and values"
