"""Draws one token per row of logits: greedy, or filtered and then inverted from the cumulative distribution.

A stochastic row uses one uniform number, fixed by (seed, choice, output position), and takes the first token in
vocabulary order at which the cumulative probability exceeds it: nothing else in the batch has a say, and no noise is
made per vocabulary entry. Filters mean what transformers' logits warpers mean, in their order: temperature, top-k,
top-p, min-p; tokens that tie with the last one kept are kept too. Rows are split by what they ask for, on the host, so
that greedy rows pay for no softmax and unfiltered rows for no sort. Does not know models, sequences or stop rules.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from model_svc.runner.noise import as_int64, uniform
from tokenwire.sampling import SamplingParams

NOT_FINITE = -1
"""Stands for the token of a row whose logits hold NaN or +infinity, or nothing but -infinity."""

NUCLEUS_SIZES = (256, 2048)
"""On a CPU, top-p first looks among this many likeliest tokens; a full sort is some twenty times slower."""

SMALLEST_TEMPERATURE = 1e-30
"""Below it a temperature would be 0 in fp32; the result is greedy either way."""


@dataclass(frozen=True, slots=True)
class RowSampling:
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
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor


def sample(logits: Tensor, rows: Rows[RowSampling]) -> list[int]:
    """One token id per row, or `NOT_FINITE`. `logits`: [N, vocab_size], any float type; not changed.

    The only wait for the device is the copy of the result.
    """
    tokens = logits.argmax(dim=-1)
    finite = logits.gather(-1, tokens[:, None]).squeeze(-1).isfinite()  # argmax finds a NaN wherever there is one
    plain: list[int] = []
    filtered: list[int] = []
    for index, row in enumerate(rows):
        if row.params.temperature:
            (filtered if is_filtered(row.params) else plain).append(index)
    for group in (plain, filtered):
        if group:
            chosen = torch.tensor(group, device=logits.device)
            columns = _columns([rows[i] for i in group], logits.device)
            tokens[chosen] = _draw(logits[chosen].float(), columns, filtered=group is filtered)
    return torch.where(finite, tokens, NOT_FINITE).tolist()


def is_filtered(params: SamplingParams) -> bool:
    """Whether any token may be cut."""
    return bool(params.top_k) or params.top_p != 1.0 or bool(params.min_p)


def _columns(rows: Rows[RowSampling], device: torch.device) -> _Columns:
    floats = torch.tensor([[r.params.temperature, r.params.top_p, r.params.min_p] for r in rows], device=device)
    integers = torch.tensor(
        [[as_int64(r.params.seed or 0), r.choice, r.position, min(r.params.top_k or 0, 2**62)] for r in rows],
        dtype=torch.int64, device=device,
    )  # fmt: skip
    seeds, choices, positions, top_k = integers.unbind(1)
    temperature, top_p, min_p = floats[:, 0:1], floats[:, 1:2], floats[:, 2:3]
    noise = uniform(seeds, choices, positions)[:, None]
    return _Columns(temperature.clamp(min=SMALLEST_TEMPERATURE), top_k[:, None], top_p, min_p, noise)


def _draw(logits: Tensor, columns: _Columns, *, filtered: bool) -> Tensor:
    """[N] token ids from logits [N, V] fp32, which it may overwrite. A row that is not finite gives any id."""
    probabilities = filtered_probabilities(logits, columns) if filtered else tempered(logits, columns).softmax(-1)
    return invert(probabilities, columns.uniform)


def tempered(logits: Tensor, columns: _Columns) -> Tensor:
    """Logits over temperature, shifted first so that the largest is 0 and no temperature can overflow."""
    return (logits - logits.amax(-1, keepdim=True)) / columns.temperature


def filtered_probabilities(logits: Tensor, columns: _Columns) -> Tensor:
    """[N, V]: probabilities, zero where a filter cuts; not scaled back to sum to 1."""
    scores = keep_top_k(tempered(logits, columns), columns.top_k)
    probabilities = scores.softmax(-1)
    threshold = torch.maximum(
        nucleus_threshold(probabilities, columns.top_p), columns.min_p * probabilities.amax(-1, keepdim=True)
    )
    return probabilities.masked_fill_(probabilities < threshold, 0.0)


def keep_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    """Scores below a row's k-th largest become -infinity; 0 keeps the row whole."""
    vocab_size = scores.shape[-1]
    limited = torch.where((top_k > 0) & (top_k < vocab_size), top_k, 0)
    largest_k = int(limited.max())
    if largest_k == 0:
        return scores
    kth = scores.topk(largest_k, dim=-1).values.gather(-1, (limited - 1).clamp(min=0))
    return scores.masked_fill((limited > 0) & (scores < kth), -torch.inf)


def nucleus_threshold(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """[N, 1]: the smallest probability within the nucleus; 0 where top_p is 1."""
    sizes = [*NUCLEUS_SIZES, probabilities.shape[-1]] if probabilities.device.type == "cpu" else []
    if bool((top_p == 1.0).all()):
        return torch.zeros_like(top_p)
    for size in sizes:
        likeliest = probabilities.topk(min(size, probabilities.shape[-1]), dim=-1).values
        if bool(((likeliest.sum(-1, keepdim=True, dtype=torch.float64) >= top_p) | (top_p == 1.0)).all()):
            break
    else:
        likeliest = probabilities.sort(dim=-1, descending=True).values
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
