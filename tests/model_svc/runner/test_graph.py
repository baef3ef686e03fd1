"""How CUDA graphs are recorded, with torch's calls noted in place of a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from model_svc.runner.graph import record_on_cuda

GPU = torch.device("cuda", 1)


class Stream:
    """Takes part in nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        del other


class Cuda:
    """torch.cuda's streams and captures. As torch does, one that fails leaves its stream the current one."""

    def __init__(self) -> None:
        self.default = self.current = Stream(GPU)
        self.made: list[Stream] = []
        self.captures: list[dict[str, Any]] = []

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802
        self.made.append(Stream(device))
        return self.made[-1]

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    def stream(self, stream: Stream) -> AbstractContextManager[None]:
        return self._on(stream)

    def graph(self, graph: Any, **given: Any) -> AbstractContextManager[None]:
        self.captures.append(given)
        return self._on(given["stream"])

    @contextmanager
    def _on(self, stream: Stream) -> Any:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    for name in ("Stream", "set_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: torch.nn.Identity())
    return cuda


def nothing_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Identity, "replay", lambda self: None, raising=False)


def test_recordings_share_a_stream_a_pool_and_leave_other_threads_alone(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS keeps memory for each stream it was ever used on."""
    nothing_replayed(monkeypatch)
    record, used = record_on_cuda(GPU), []

    def compute() -> torch.Tensor:
        used.append(cuda.current)
        return torch.zeros(1)

    for _ in range(3):
        record(compute)
    (beside,) = cuda.made
    assert beside.device == GPU and used == [beside] * 6
    assert cuda.captures == [{"pool": (0, 1), "stream": beside, "capture_error_mode": "thread_local"}] * 3
    assert cuda.current is cuda.default


def fails_at(call: int) -> Callable[[], torch.Tensor]:
    calls = iter(range(call + 1))

    def compute() -> torch.Tensor:
        if next(calls) == call:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    return compute


def test_a_recording_that_fails_leaves_the_stream_as_it_was(cuda: Cuda) -> None:
    record = record_on_cuda(GPU)
    with pytest.raises(RuntimeError, match="not permitted"):
        record(fails_at(1))
    assert cuda.current is cuda.default
