"""Decode steps recorded once per batch size and replayed, so that the host launches two graphs instead of every kernel.

Per bucket one graph from token ids to logits, over static buffers: a step's rows are copied in, what pads the bucket
computes one position of a scratch block that nobody reads, and the logits of the rows that count are handed out. Then
one from these logits to tokens (`recorded_sampler`), for rows whose logits nothing changes; penalties, masks and
log-probabilities read the logits in between. Where adapters are served each size has a second graph, which leaves its
logits in the same place, for steps in which a row has one: those without cost nothing. All graphs share one memory
pool. What start-up left out is recorded while serving, once it has been wanted often enough. Knows how a graph is
recorded only as a function it is given. Does not know sequences.
"""

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import PagedKV, PagedStep
from model_svc.model.step_adapters import StepAdapters
from model_svc.runner.graph import Graph, Record
from model_svc.runner.recorded_sampler import RecordedSampler
from model_svc.runner.sampler import RowSampling

log = logging.getLogger(__name__)

EAGER_STEPS = 16
"""Steps of a size that are computed before it is recorded while serving. An estimate of how many of them recording it
takes as long as: so waiting costs at most as much again, and sizes that are only passed through are not recorded."""


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
        num_adapter_slots: int = 0,
    ) -> None:
        """`max_blocks` bounds a row's block table; `scratch_block` is a block of the cache that no sequence gets.

        `backend` does not gather: what rows before have left behind a row's own blocks may be no numbers.
        """
        self.sizes = buckets(max_batch_size)
        self.num_replays = 0
        self._model, self._kv, self._backend, self._record = model, kv, backend, record
        self._graphs: dict[int, Graph] = {}
        self._adapted: dict[int, Graph] = {}
        self._num_eager: Counter[tuple[int, bool]] = Counter()
        """By size, and whether a row had an adapter: steps that were computed because nothing was recorded for them."""
        self._failed: set[tuple[int, bool]] = set()
        self._num_adapter_slots = num_adapter_slots
        self._scratch_block = scratch_block
        self._make_buffers(kv.device, self.sizes[-1], max_blocks)
        self.sampler = RecordedSampler(
            record, largest=self.sizes[-1], vocab_size=model.vocab_size, device=kv.device
        )  # fmt: skip
        self._size = 0
        """The size that was replayed last."""

    @torch.inference_mode()
    def _make_buffers(self, device: torch.device, largest: int, max_blocks: int) -> None:
        """What stays where it is, of the kind that a step's own tensors are: compiled code asks which it is."""
        self._token_ids = torch.zeros(largest, dtype=torch.int64, device=device)
        self._positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self._slots = torch.empty(largest, dtype=torch.int64, device=device)
        self._lengths = torch.empty(largest, dtype=torch.int64, device=device)
        self._table = torch.full((largest, max_blocks), self._scratch_block, dtype=torch.int64, device=device)
        self._range = torch.arange(largest + 1, dtype=torch.int64, device=device)
        self._adapter_tokens = torch.zeros(largest, dtype=torch.int64, device=device)
        self._adapter_starts = torch.zeros(self._num_adapter_slots + 1, dtype=torch.int64, device=device)
        self._pad(0, largest)

    def record_all(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Record every size, the largest first: the smaller ones then fit into its memory."""
        for done, size in enumerate(reversed(self.sizes), start=1):
            self._graph(size)
            if self._num_adapter_slots:
                self._adapted_graph(size)
            progress(done, len(self.sizes))

    def record_largest(self) -> None:
        """Record what takes most, to see how much memory that is: the largest size, and the largest with every draw."""
        self._graph(self.sizes[-1])
        for size in filter(self.sampler.takes_all_draws, reversed(self.sizes)):
            self._graph(size)
            break

    def record_smallest(self) -> None:
        """Record the smallest size, to see that it can be done."""
        self._graph(self.sizes[0])

    def ready(self, step: PagedStep) -> bool:
        """Whether the step's D rows of one token can be replayed. D is 1 to `max_batch_size`.

        Counts those that cannot, and records a size whose time has come. One that cannot be recorded is computed for
        good, logged.
        """
        size = self._size_of(step)
        adapted = step.adapters is not None and bool((step.adapters.slot_of[: step.num_decodes] >= 0).any())
        if size in (self._adapted if adapted else self._graphs):
            return True
        if (size, adapted) in self._failed:
            return False
        self._num_eager[size, adapted] += 1
        if self._num_eager[size, adapted] <= EAGER_STEPS:
            return False
        try:
            self._adapted_graph(size) if adapted else self._graph(size)
        except RuntimeError as error:
            log.warning(
                "decode steps of %d rows%s are not recorded: %s", size, " with adapters" if adapted else "", error
            )
            self._failed.add((size, adapted))
            return False
        return True

    def logits(self, token_ids: Tensor, positions: Tensor, step: PagedStep) -> Tensor:
        """[D, vocab_size]: logits of the step's D rows of one token, which come first in `token_ids` [T], `positions`.

        The step must be `ready`. Writes their keys and values into the cache. Valid until the next call.
        """
        num_rows = step.num_decodes
        size = self._size_of(step)
        graph = self._graphs[size]
        adapters = None if step.adapters is None else step.adapters.part(slice(num_rows))
        replayed = graph if adapters is None else self._adapted[size]
        if adapters is not None:
            self._adapter_tokens[: len(adapters.tokens)].copy_(adapters.tokens)
            self._adapter_starts.copy_(adapters.starts)
        self._token_ids[:num_rows].copy_(token_ids[:num_rows])
        self._positions[:num_rows].copy_(positions[:num_rows])
        self._slots[:num_rows].copy_(step.slots[:num_rows])
        self._lengths[:num_rows].copy_(step.lengths[:num_rows])
        self._table[:num_rows, : step.table.shape[1]].copy_(step.table[:num_rows])
        if num_rows < size:
            self._pad(num_rows, size)
        replayed.replay()
        self.num_replays += 1
        self._size = size
        return graph.output[:num_rows]

    def tokens(self, rows: Rows[RowSampling]) -> Tensor | None:
        """[len(rows)] int64: drawn from the logits that the last call of `logits` gave, as `sampler.sample` would.

        None where that is not recorded.
        """
        return self.sampler.tokens(self._size, rows)

    def _size_of(self, step: PagedStep) -> int:
        """The size that fits the step's rows of one token."""
        return self.sizes[bisect_left(self.sizes, step.num_decodes)]

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
            self.sampler.record(graph.output)
        return graph

    def _adapted_graph(self, size: int) -> Graph:
        graph = self._adapted.get(size)
        if graph is None:
            logits = self._graph(size).output
            self._pad(0, size)
            self._adapter_starts.zero_()  # what a larger step has left names tokens that this one has not
            graph = self._adapted[size] = self._record(lambda: logits.copy_(self._compute(size, adapted=True)))
        return graph

    def _compute(self, size: int, *, adapted: bool = False) -> Tensor:
        longest = self._table.shape[1] * self._kv.block_size
        step = PagedStep(
            self._kv, self._slots[:size], self._table[:size], self._lengths[:size], self._range[: size + 1], size,
            (longest,) * size, (1,) * size, recorded=True, adapters=self._recorded_adapters(size) if adapted else None,
        )  # fmt: skip
        return self._model.logits(
            self._token_ids[:size], self._positions[:size], self._range[:size], step, self._backend
        )  # fmt: skip

    def _recorded_adapters(self, size: int) -> StepAdapters:
        """Whatever tokens have adapters when it is replayed."""
        return StepAdapters(self._adapter_tokens[:size], self._adapter_starts, np.empty(0, dtype=np.int64))
