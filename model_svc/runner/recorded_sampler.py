"""The sampler as a recorded computation: one graph per batch size and kind of draw, over that size's recorded logits.

The same draws as `sampler.sample`, row by row to the bit on a CPU, from a table of the rows' parameters that stays
where it is, and without a branch on what a row asks for: rows that ask for less take neutral values. So a batch is as
costly as its most demanding row, and kinds that do more than find the largest logit are not recorded for large batches.
Does not know sequences, nor what changes logits before a draw.
"""

import logging
from collections.abc import Sequence as Rows
from enum import IntEnum
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model_svc.model.upload import to_device
from model_svc.runner.graph import Graph, Record
from model_svc.runner.noise import as_int64, uniform
from model_svc.runner.sampler import (
    NOT_FINITE,
    RowSampling,
    greedy,
    invert,
    is_filtered,
    keep_top_k,
    nucleus_edge,
    tamed,
    tempered,
    top_k_of,
)

log = logging.getLogger(__name__)

MOST_SCORES = 2**22
"""Rows times vocabulary up to which more than the largest logit is recorded. An estimate: beyond it the device sorts
for longer than the host takes to launch, and the memory that the recordings keep grows with it."""
NUM_VALUES = 7


class Draw(IntEnum):
    """What the most demanding row of a batch asks for."""

    GREEDY = 0
    SAMPLED = 1
    """From all tokens."""
    FILTERED = 2
    """By top-k, top-p or min-p."""


def draw_of(row: RowSampling) -> Draw:
    """What one row asks for."""
    if not row.params.temperature:
        return Draw.GREEDY
    return Draw.FILTERED if is_filtered(row.params) else Draw.SAMPLED


class RecordedSampler:
    """Graphs for batches of up to `largest` rows. Not for several threads."""

    def __init__(self, record: Record, *, largest: int, vocab_size: int, device: torch.device) -> None:
        self.num_replays = 0
        self._record, self._vocab_size, self._device = record, vocab_size, device
        self._graphs: dict[tuple[int, Draw], Graph] = {}
        self._values = torch.zeros(NUM_VALUES, largest, dtype=torch.int64, device=device)
        """By row of the batch: see `values_of`. What the last batch left pads a smaller one; nobody looks at it."""

    def takes_all_draws(self, size: int) -> bool:
        """Whether more than the largest logit is recorded for so many rows."""
        return size * self._vocab_size <= MOST_SCORES

    def record(self, logits: Tensor) -> None:
        """Record the draws from `logits` [N, vocab_size], which hold what is drawn from whenever it is replayed.

        A kind that cannot be recorded is left to the eager sampler, logged.
        """
        size = len(logits)
        for draw in Draw:
            if draw > Draw.GREEDY and not self.takes_all_draws(size):
                continue
            try:
                graph = self._record(partial(draw_tokens, logits, self._values[:, :size], draw))
            except RuntimeError as error:
                log.warning("%s draws of %d rows are not recorded: %s", draw.name.lower(), size, error)
                continue
            self._graphs[size, draw] = graph

    def tokens(self, size: int, rows: Rows[RowSampling]) -> Tensor | None:
        """[len(rows)] int64 as `sampler.sample` gives them for the first of the `size` recorded logits.

        None where such a draw is not recorded. Does not wait for a GPU.
        """
        draw = max(map(draw_of, rows))
        graph = self._graphs.get((size, draw))
        if graph is None:
            return None
        if draw > Draw.GREEDY:
            self._values[:, : len(rows)].copy_(to_device(values_of(rows, self._vocab_size), self._device))
        graph.replay()
        self.num_replays += 1
        return graph.output[: len(rows)].clone()  # the copy to the host may come after the next replay


def values_of(rows: Rows[RowSampling], vocab_size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[NUM_VALUES, N]: seed, choice, position and top-k; then the bits of temperature, top-p and min-p in float64.

    A greedy row's temperature is 0.
    """
    integers = [
        (as_int64(row.params.seed or 0), row.choice, row.position, top_k_of(row.params, vocab_size)) for row in rows
    ]
    floats = [
        (tamed(row.params.temperature) if row.params.temperature else 0.0, row.params.top_p, row.params.min_p)
        for row in rows
    ]
    bits = np.array(floats, dtype=np.float64).view(np.int64)
    return np.ascontiguousarray(np.concatenate((np.array(integers, dtype=np.int64), bits), axis=1).T)


def draw_tokens(logits: Tensor, values: Tensor, draw: Draw) -> Tensor:
    """[N] int64: a token id per row or `NOT_FINITE`. `values`: [NUM_VALUES, N]; no row may ask for more than `draw`."""
    tokens, finite = greedy(logits)
    if draw > Draw.GREEDY:
        seeds, choices, positions, top_k = values[:4].unbind(0)
        temperature, top_p, min_p = values[4:].contiguous().view(torch.float64).float()[:, :, None].unbind(0)  # [N, 1]
        stochastic = temperature > 0
        scores = tempered(logits.float(), torch.where(stochastic, temperature, 1.0))
        probabilities = filtered(scores, top_k[:, None], top_p, min_p) if draw is Draw.FILTERED else scores.softmax(-1)
        drawn = invert(probabilities, uniform(seeds, choices, positions)[:, None])
        tokens = torch.where(stochastic.squeeze(-1), drawn, tokens)
    return torch.where(finite, tokens, NOT_FINITE)


def filtered(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """`sampler.filtered_probabilities` by sorting, whatever rows ask for. Parameters [N, 1]; `scores` may change."""
    scores = keep_top_k(scores, top_k, scores.sort(dim=-1, descending=True).values)
    probabilities = scores.softmax(-1)
    nucleus = nucleus_edge(probabilities.sort(dim=-1, descending=True).values, top_p)
    threshold = torch.maximum(nucleus, min_p * probabilities.amax(-1, keepdim=True))
    return probabilities.masked_fill_(probabilities < threshold, 0.0)
