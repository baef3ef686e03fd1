"""Decode steps recorded once per batch size and replayed, so that the host launches one graph instead of every kernel.

One graph per bucket, from token ids to logits, over static buffers: a step's rows are copied in, what pads the bucket
computes one position of a scratch block that nobody reads, and the logits of the rows that count are handed out. All
graphs share one memory pool. Tokens are drawn outside, so penalties, masks and log-probabilities need no graph of their
own. Knows how a graph is recorded only as a function it is given. Does not know sequences.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import PagedKV, PagedStep

log = logging.getLogger(__name__)


class Graph(NamedTuple):
    """A recorded computation."""

    replay: Callable[[], None]
    output: Tensor
    """What was computed when it was recorded; each replay fills it anew."""


Record = Callable[[Callable[[], Tensor]], Graph]
"""Records what a function does to tensors that stay where they are."""


def buckets(max_batch_size: int) -> list[int]:
    """The batch sizes that are recorded: 1, 2, 4, 8, then steps of 8, 16 and 32, up to the limit."""
    sizes = [*(1, 2, 4), *range(8, 32, 8), *range(32, 128, 16), *range(128, max_batch_size, 32)]
    return [*(size for size in sizes if size < max_batch_size), max_batch_size]


class DecodeGraphs:
    """Graphs of one model over one cache. Not for several threads."""

    def __init__(
        self,
        model: LoadedModel,
        kv: PagedKV,
        backend: AttentionBackend,
        record: Record,
        *,
        max_batch_size: int,
        max_blocks: int,
        scratch_block: int,
    ) -> None:
        """`max_blocks` bounds a row's block table; `scratch_block` is a block of the cache that no sequence gets."""
        self.sizes = buckets(max_batch_size)
        self.num_replays = 0
        self._model, self._kv, self._backend, self._record = model, kv, backend, record
        self._graphs: dict[int, Graph] = {}
        self._scratch_block = scratch_block
        device, largest = kv.device, self.sizes[-1]
        self._token_ids = torch.zeros(largest, dtype=torch.int64, device=device)
        self._positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self._slots = torch.empty(largest, dtype=torch.int64, device=device)
        self._lengths = torch.empty(largest, dtype=torch.int64, device=device)
        self._table = torch.full((largest, max_blocks), scratch_block, dtype=torch.int64, device=device)
        self._range = torch.arange(largest + 1, dtype=torch.int64, device=device)
        self._pad(0, largest)

    def record_all(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Record every size, the largest first: the smaller ones then fit into its memory."""
        for done, size in enumerate(reversed(self.sizes), start=1):
            self._graph(size)
            progress(done, len(self.sizes))

    def record_smallest(self) -> None:
        """Record the smallest size, to see that it can be done."""
        self._graph(self.sizes[0])

    def logits(self, token_ids: Tensor, positions: Tensor, step: PagedStep) -> Tensor:
        """[D, vocab_size]: logits of the step's D rows of one token, which come first in `token_ids` [T], `positions`.

        Writes their keys and values into the cache. Valid until the next call. D is 1 to `max_batch_size`.
        """
        num_rows = step.num_decodes
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        graph = self._graph(size)
        self._token_ids[:num_rows].copy_(token_ids[:num_rows])
        self._positions[:num_rows].copy_(positions[:num_rows])
        self._slots[:num_rows].copy_(step.slots[:num_rows])
        self._lengths[:num_rows].copy_(step.lengths[:num_rows])
        self._table[:num_rows, : step.table.shape[1]].copy_(step.table[:num_rows])
        if num_rows < size:
            self._pad(num_rows, size)
        graph.replay()
        self.num_replays += 1
        return graph.output[:num_rows]

    def _pad(self, start: int, stop: int) -> None:
        """Rows that compute the scratch block's first position."""
        self._token_ids[start:stop] = 0
        self._positions[start:stop] = 0
        self._slots[start:stop] = self._scratch_block * self._kv.block_size
        self._lengths[start:stop] = 1
        self._table[start:stop, 0] = self._scratch_block

    def _graph(self, size: int) -> Graph:
        graph = self._graphs.get(size)
        if graph is None:
            self._pad(0, size)
            graph = self._graphs[size] = self._record(lambda: self._compute(size))
        return graph

    def _compute(self, size: int) -> Tensor:
        longest = self._table.shape[1] * self._kv.block_size
        step = PagedStep(
            self._kv, self._slots[:size], self._table[:size], self._lengths[:size], self._range[: size + 1], size,
            (longest,) * size, (1,) * size, recorded=True,
        )  # fmt: skip
        return self._model.logits(
            self._token_ids[:size], self._positions[:size], self._range[:size], step, self._backend
        )  # fmt: skip


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
