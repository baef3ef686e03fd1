"""Chooses each row's next token: changes its logits where its request asks for that, then draws.

Knows which sequences the rows belong to, and which drafts are taken for their tokens. Does not know the model, nor what
a token means.
"""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from model_svc.engine.sequence import Sequence
from model_svc.grammar.bench import StepMasks
from model_svc.runner.logits import LogitsChanger, is_changed
from model_svc.runner.sampler import NOT_FINITE, RowSampling, sample
from tokenwire.sampling import NEUTRAL

NO_TOKEN = -2
"""Stands for the token of a row whose logits are sound and whose request bans them all."""

UNCHANGED = RowSampling(NEUTRAL, choice=0, position=0)
"""The cheapest draw: only tells whether the model's logits are finite."""


def draws_of(sequences: Rows[Sequence], drafts: Rows[list[int]] | None = None) -> list[RowSampling]:
    """How each sequence's next token is drawn, or the one after its `drafts`."""
    if drafts is None:
        return [RowSampling(s.sampling, s.choice, s.num_outputs) for s in sequences]
    return [RowSampling(s.sampling, s.choice, s.num_outputs + len(d)) for s, d in zip(sequences, drafts, strict=True)]


def is_plain(sequence: Sequence) -> bool:
    """Whether its next token is drawn from the logits as the model gives them, which nobody else reads."""
    return sequence.logprobs is None and not is_changed(sequence)


def next_tokens(
    logits: Tensor,
    sequences: Rows[Sequence],
    changer: LogitsChanger,
    drafts: Rows[list[int]] | None = None,
    masks: StepMasks | None = None,
) -> Tensor:
    """[N] int64 on the device: a token id per row, `NOT_FINITE` or `NO_TOKEN`. Does not wait for a GPU.

    `logits`: [N, vocab_size] of each sequence's last token, any float type; not changed. With `drafts` [N]: of the last
    of a row's drafts, where it has any, taken for the sequence's own; a sequence may have several rows then. `masks`:
    of the constrained ones among the sequences, for whose threads it waits.
    """
    draws = draws_of(sequences, drafts)
    changed = changer.change(logits, sequences, drafts, masks)
    if changed is None:
        return sample(logits, draws)
    drawn = sample(changed.logits, [draws[row] for row in changed.rows])
    for row in changed.rows:
        draws[row] = UNCHANGED
    tokens = sample(logits, draws)
    drawn = torch.where(drawn == NOT_FINITE, NO_TOKEN, drawn)
    tokens[changed.index] = torch.where(tokens[changed.index] == NOT_FINITE, NOT_FINITE, drawn)
    return tokens
