"""Draws one token per row of logits: greedy, or filtered and then inverted from the cumulative distribution.

A stochastic row uses one uniform number, fixed by (seed, choice, output position), and takes the first token in
vocabulary order at which the cumulative probability exceeds it: nothing else in the batch has a say, and no noise is
made per vocabulary entry. Filters mean what transformers' logits warpers mean, in their order: temperature, top-k,
top-p, min-p; tokens that tie with the last one kept are kept too. Rows are split by what they ask for, on the host, so
that greedy rows pay for no softmax and unfiltered rows for no sort. The same draw without that split, which needs no
number of the host's, is in `recorded_sampler`. Does not know models, sequences or stop rules.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_svc.model.upload import to_device
from model_svc.runner.noise import as_int64, uniform
from tokenwire.sampling import SamplingParams

NOT_FINITE = -1
"""Stands for the token of a row whose logits hold NaN or +infinity, or nothing but -infinity."""

NUCLEUS_SIZES = (256, 2048)
"""On a CPU, top-p first looks among this many likeliest tokens; a full sort is some twenty times slower."""

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-30, 1e30
"""Beyond them a temperature could be 0 or infinite in fp32; the result is greedy, or uniform, either way."""


class RowSampling(NamedTuple):
    """How one row is drawn."""

    params: SamplingParams
    """Resolved: no field is None."""
    choice: int
    position: int
    """Output tokens before this one."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Sampling values of N rows, as tensors [N, 1] (the noise arguments [N])."""

    temperature: Tensor
    top_k: Tensor
    """0 where it cuts nothing."""
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    largest_k: int
    """The largest top_k that cuts anything; 0: none does."""
    any_nucleus: bool
    """Whether any row's top_p is below 1."""


def sample(logits: Tensor, rows: Rows[RowSampling]) -> Tensor:
    """[N] int64: one token id per row, or `NOT_FINITE`. `logits`: [N, vocab_size], any float type; not changed.

    Does not wait for a GPU.
    """
    tokens, finite = greedy(logits)
    plain: list[int] = []
    filtered: list[int] = []
    for index, row in enumerate(rows):
        if row.params.temperature:
            (filtered if is_filtered(row.params) else plain).append(index)
    for group in (plain, filtered):
        if group:
            chosen = to_device(np.array(group), logits.device)
            columns = _columns([rows[i] for i in group], logits)
            tokens[chosen] = _draw(logits[chosen].float(), columns, filtered=group is filtered)
    return torch.where(finite, tokens, NOT_FINITE)


def likeliest(logits: Tensor) -> Tensor:
    """[N] int64: the first of each row's largest logits [N, vocab_size]; a NaN, where there is one."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    # numpy means the same and is several times as fast: torch compares a number at a time, bf16 most slowly.
    return torch.from_numpy(logits.float().numpy().argmax(axis=-1))


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[N] int64: `likeliest`; [N] bool: whether any token may be drawn from the row."""
    tokens = likeliest(logits)
    return tokens, logits.gather(-1, tokens[:, None]).squeeze(-1).isfinite()  # argmax finds a NaN wherever there is one


def is_filtered(params: SamplingParams) -> bool:
    """Whether any token may be cut."""
    return bool(params.top_k) or params.top_p != 1.0 or bool(params.min_p)


def _columns(rows: Rows[RowSampling], logits: Tensor) -> _Columns:
    device, vocab_size = logits.device, logits.shape[-1]
    values = [[tamed(r.params.temperature or 0.0), r.params.top_p, r.params.min_p] for r in rows]
    limits = [top_k_of(r.params, vocab_size) for r in rows]
    counters = [
        [as_int64(r.params.seed or 0), r.choice, r.position, limit] for r, limit in zip(rows, limits, strict=True)
    ]
    floats = to_device(np.array(values, dtype=np.float32), device)
    integers = to_device(np.array(counters, dtype=np.int64), device)
    seeds, choices, positions, top_k = integers.unbind(1)
    temperature, top_p, min_p = floats[:, 0:1], floats[:, 1:2], floats[:, 2:3]
    noise = uniform(seeds, choices, positions)[:, None]
    any_nucleus = any(r.params.top_p != 1.0 for r in rows)
    return _Columns(temperature, top_k[:, None], top_p, min_p, noise, max(limits), any_nucleus)


def top_k_of(params: SamplingParams, vocab_size: int) -> int:
    """The request's top_k, 0 where it cuts nothing."""
    return params.top_k if params.top_k and params.top_k < vocab_size else 0


def tamed(temperature: float) -> float:
    """A temperature that fp32 holds, neither 0 nor infinite."""
    return min(max(temperature, SMALLEST_TEMPERATURE), LARGEST_TEMPERATURE)


def _draw(logits: Tensor, columns: _Columns, *, filtered: bool) -> Tensor:
    """[N] token ids from logits [N, V] fp32, which it may overwrite. A row that is not finite gives any id."""
    if filtered:
        probabilities = filtered_probabilities(logits, columns)
    else:
        probabilities = tempered(logits, columns.temperature).softmax(-1)
    return invert(probabilities, columns.uniform)


def tempered(logits: Tensor, temperature: Tensor) -> Tensor:
    """Logits over temperature, shifted first so that the largest is 0 and no temperature can overflow."""
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def filtered_probabilities(logits: Tensor, columns: _Columns) -> Tensor:
    """[N, V]: probabilities, zero where a filter cuts; not scaled back to sum to 1."""
    scores = tempered(logits, columns.temperature)
    if columns.largest_k:
        scores = keep_top_k(scores, columns.top_k, scores.topk(columns.largest_k, dim=-1).values)
    probabilities = scores.softmax(-1)
    threshold = columns.min_p * probabilities.amax(-1, keepdim=True)
    if columns.any_nucleus:
        threshold = torch.maximum(nucleus_threshold(probabilities, columns.top_p), threshold)
    return probabilities.masked_fill_(probabilities < threshold, 0.0)


def keep_top_k(scores: Tensor, top_k: Tensor, largest: Tensor) -> Tensor:
    """Scores below a row's k-th largest become -infinity; 0 keeps the row whole. `largest`: in order, top_k or more."""
    kth = largest.gather(-1, (top_k - 1).clamp(min=0))
    return scores.masked_fill((top_k > 0) & (scores < kth), -torch.inf)


def nucleus_threshold(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """[N, 1]: the smallest probability within the nucleus; 0 where top_p is 1."""
    sizes = [*NUCLEUS_SIZES, probabilities.shape[-1]] if probabilities.device.type == "cpu" else []
    for size in sizes:
        likeliest = probabilities.topk(min(size, probabilities.shape[-1]), dim=-1).values
        if bool(((likeliest.sum(-1, keepdim=True, dtype=torch.float64) >= top_p) | (top_p == 1.0)).all()):
            break
    else:
        likeliest = probabilities.sort(dim=-1, descending=True).values
    return nucleus_edge(likeliest, top_p)


def nucleus_edge(likeliest: Tensor, top_p: Tensor) -> Tensor:
    """`nucleus_threshold` from a row's likeliest tokens in order, which must hold the nucleus."""
    before = likeliest.cumsum(-1, dtype=torch.float64) - likeliest
    last_kept = ((before < top_p).sum(-1, keepdim=True) - 1).clamp(min=0)
    return torch.where(top_p == 1.0, 0.0, likeliest.gather(-1, last_kept))


def invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """[N]: the first token whose cumulative probability exceeds uniform × total, in vocabulary order."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp(max=probabilities.shape[-1] - 1)  # past the end only where a row is NaN
