"""A recorded computation, and what records one: on a GPU as CUDA graphs. Does not know what is computed."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor


class Graph(NamedTuple):
    """A recorded computation."""

    replay: Callable[[], None]
    output: Tensor
    """What was computed when it was recorded; each replay fills it anew."""


Record = Callable[[Callable[[], Tensor]], Graph]
"""Records what a function does to tensors that stay where they are."""


def record_on_cuda(device: torch.device) -> Record:
    """What records CUDA graphs that share one memory pool and one stream to record on, which cuBLAS keeps memory for.

    Other threads may allocate, pin and copy meanwhile. Raises RuntimeError for what cannot be recorded, and leaves
    torch as it was.
    """
    pool = torch.cuda.graph_pool_handle()
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(compute: Callable[[], Tensor]) -> Graph:
        current = torch.cuda.current_stream(device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            compute()  # what is made at a first call must not be recorded
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=beside, capture_error_mode="thread_local"):
                output = compute()
        except RuntimeError:
            torch.cuda.set_stream(current)  # torch leaves the other one current
            with suppress(RuntimeError):  # from 2.12 on torch has done it; before, it would free no memory any more
                torch._C._cuda_endAllocateToPool(beside.device.index, pool)
            raise
        return Graph(graph.replay, output)

    return record
