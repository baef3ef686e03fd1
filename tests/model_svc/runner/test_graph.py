"""How CUDA graphs are recorded, with torch's calls noted in place of a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
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
    """torch.cuda's streams and captures. As torch does, one that fails leaves its stream the current one.

    `tidy`: as torch from 2.12 on, which takes it back from the allocator that a capture is underway.
    """

    def __init__(self) -> None:
        self.default = self.current = Stream(GPU)
        self.tidy = False
        self.pools: list[tuple[int, int]] = []
        """Those that a capture allocates from, as the allocator knows it."""
        self.made: list[Stream] = []
        self.captures: list[dict[str, Any]] = []

    def make_stream(self, device: torch.device) -> Stream:
        self.made.append(Stream(device))
        return self.made[-1]

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: Stream) -> Any:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph(self, graph: Any, **given: Any) -> AbstractContextManager[None]:
        self.captures.append(given)
        return self._capturing(given["stream"], given["pool"])

    def end_allocate_to_pool(self, device: int, pool: tuple[int, int]) -> None:
        if (device, pool) not in [(1, each) for each in self.pools]:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.remove(pool)

    @contextmanager
    def _capturing(self, stream: Stream, pool: tuple[int, int]) -> Any:
        assert not self.pools, "captures_underway.empty() INTERNAL ASSERT FAILED"
        self.pools.append(pool)
        before, self.current = self.current, stream
        try:
            yield
        except RuntimeError:
            if self.tidy:
                self.pools.remove(pool)
            raise
        self.pools.remove(pool)
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    for name in ("set_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", cuda.make_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocate_to_pool)
    return cuda


def test_recordings_share_a_stream_a_pool_and_leave_other_threads_alone(cuda: Cuda) -> None:
    """cuBLAS keeps memory for each stream it was ever used on."""
    record, used = record_on_cuda(GPU), []

    def compute() -> torch.Tensor:
        used.append(cuda.current)
        return torch.zeros(1)

    for _ in range(3):
        record(compute)
    (beside,) = cuda.made
    assert beside.device == GPU and used == [beside] * 6
    assert cuda.captures == [{"pool": (0, 1), "stream": beside, "capture_error_mode": "thread_local"}] * 3
    assert cuda.current is cuda.default and not cuda.pools


def fails_at(call: int) -> Callable[[], torch.Tensor]:
    calls = iter(range(call + 1))

    def compute() -> torch.Tensor:
        if next(calls) == call:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    return compute


@pytest.mark.parametrize("tidy", [False, True])
@pytest.mark.parametrize("call", [0, 1], ids=["warming up", "recorded"])
def test_a_recording_that_fails_leaves_no_trace(cuda: Cuda, call: int, tidy: bool) -> None:
    """While its allocator takes a capture for underway torch gives no memory back, and refuses the next recording."""
    cuda.tidy = tidy
    record = record_on_cuda(GPU)
    with pytest.raises(RuntimeError, match="not permitted"):
        record(fails_at(call))
    assert cuda.current is cuda.default and not cuda.pools
    record(lambda: torch.zeros(1))
