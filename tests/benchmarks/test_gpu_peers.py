"""The GPU benchmark's peers: what fails of one costs the others nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.gpu_suite import peers
from benchmarks.gpu_suite.report import Report
from benchmarks.gpu_suite.shapes import Source

CPU = torch.device("cpu")


class Broken(Source):
    """The model's continuous batching changes the attention, as it does, and then fails."""

    def plain(self, device: torch.device, dtype: str) -> Any:
        module = super().plain(device, dtype)

        def generate_batch(**_: Any) -> None:
            module.set_attn_implementation("paged|eager")
            raise MemoryError("none is left")

        module.generate_batch = generate_batch
        return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_generate_is_measured_after_continuous_batching_failed() -> None:
    report = Report(100.0, lambda line: None)
    peers.measure_peers(report, Broken("tiny", None), CPU, "float32", quick=True)
    assert report.results["continuous batching 4"]["failed"].startswith("MemoryError")
    assert report.results["generate 1"]["output_tokens"] == 8 and report.results["generate 4"]["output_tokens"] == 32
