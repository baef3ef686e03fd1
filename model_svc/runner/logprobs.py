"""Log-probabilities of given tokens and of the likeliest ones, from logits as the model gave them.

Natural logarithms of the softmax, in fp32, before temperature, penalties and filters; computed in slices of rows, so
that memory stays bounded. The likeliest are ordered by probability, then by id. Does not know why a token was chosen.
"""

from collections.abc import Sequence as Rows
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_svc.model.upload import to_device
from model_svc.runner.input_batch import PromptSpan
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import MAX_LOGPROBS

SLICE_ROWS = 128
NUM_CANDIDATES = MAX_LOGPROBS + 12
"""Likeliest tokens looked at, always this many, so that what else is asked for in a batch does not move ties: they are
in the order of their ids unless more tokens tie than this."""


class Scores(NamedTuple):
    """Log-probabilities of L positions."""

    own: Tensor
    """[L] fp32: of the given tokens."""
    top: Tensor
    """[L, K] fp32: of the K likeliest tokens, largest first; K is 0 where nobody asks."""
    top_ids: Tensor
    """[L, K] int64."""


def score_sampled(logits: Tensor, tokens: Tensor, num_top: Rows[int | None]) -> Scores | None:
    """Scores of those `tokens` [S] int64 whose `num_top` is not None; None where all are. `logits`: [≥ S, vocab_size].

    A negative token stands for none; its scores mean nothing.
    """
    asked = [num for num in num_top if num is not None]
    if not asked:
        return None
    tokens = tokens.clamp(min=0)
    if len(asked) == len(tokens):
        return score(logits, tokens, max(asked))
    rows = to_device(np.array([row for row, num in enumerate(num_top) if num is not None]), logits.device)
    return score(logits, tokens[rows], max(asked), rows)


def score_prompt(logits: Tensor, targets: Tensor, spans: Rows[PromptSpan]) -> Scores | None:
    """Scores of the prompt's tokens `targets` [P] int64, which `logits` [P, vocab_size] predict; None without any."""
    return score(logits, targets, max(span.num_top for span in spans)) if spans else None


def score(logits: Tensor, token_ids: Tensor, num_top: int, rows: Tensor | None = None) -> Scores:
    """The scores of `token_ids` [L] int64 under the first L of `logits` [≥ L, vocab_size], or under `rows` [L] of them.

    `num_top` is the most any position asks for. A position whose logits are not finite has NaN.
    """
    parts: list[Scores] = []
    for start in range(0, len(token_ids), SLICE_ROWS):
        part = slice(start, start + SLICE_ROWS)
        targets = token_ids[part]
        chosen = logits[start : start + len(targets)] if rows is None else logits.index_select(0, rows[part])
        parts.append(_score(chosen.float().log_softmax(-1), targets, num_top))
    return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _score(logprobs: Tensor, token_ids: Tensor, num_top: int) -> Scores:
    own = logprobs.gather(-1, token_ids[:, None]).squeeze(-1)
    num_candidates = min(NUM_CANDIDATES, logprobs.shape[-1]) if num_top else 0
    top, ids = logprobs.topk(num_candidates, dim=-1)
    by_id = ids.argsort(dim=-1)
    order = top.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True)[:, :num_top]
    order = by_id.gather(-1, order)
    return Scores(own, top.gather(-1, order), ids.gather(-1, order))


def entries(scores: Scores, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
    """One entry per position from `scores` on the host, each with as many likeliest tokens as it asks for."""
    columns = zip(token_ids, num_top, scores.own.tolist(), scores.top.tolist(), scores.top_ids.tolist(), strict=True)
    return [
        TokenLogprob(token_id, own, tuple(map(TokenLogprob, top_ids[:num], top[:num])))
        for token_id, num, own, top, top_ids in columns
    ]
