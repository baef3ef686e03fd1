"""A recorded computation, and what records one: on a GPU as CUDA graphs. Does not know what is computed."""

from collections.abc import Callable
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
    """What records CUDA graphs that share one memory pool."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], Tensor]) -> Graph:
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            compute()  # what is made at a first call must not be recorded
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = compute()
        return Graph(graph.replay, output)

    return record
