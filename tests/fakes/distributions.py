"""Whether tokens were drawn from a distribution."""

import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tokenwire.sampling import SamplingParams


def filtered(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """The distribution [V] that transformers would draw from, given logits [V]."""
    ids, scores = torch.zeros(1, 1, dtype=torch.int64), logits[None].clone()
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p != 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores.softmax(-1)[0]


def chi_square_fits(drawn: list[int], wanted: torch.Tensor) -> bool:
    """Whether `drawn` passes for draws from `wanted` [V]: chi-square at p = 0.001, and nothing outside the support."""
    counts = torch.bincount(torch.tensor(drawn), minlength=len(wanted)).double()
    if counts[wanted == 0].sum() > 0:
        return False
    expected = wanted.double()[wanted > 0] * len(drawn)
    statistic = float(((counts[wanted > 0] - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    # Wilson and Hilferty's approximation of the quantile.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3 if degrees else 1e-9
    return statistic <= limit
