"""What a request adds to every step's logits, on the device: logit bias, ids never allowed, ids alone allowed.

One row per persistent slot (`Sequence.slot`), written when a sequence is first seen under it and added at each step.
Does not know what changes from step to step (see `logits`).
"""

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from model_svc.engine.sequence import Sequence
from model_svc.model.paged import Ints
from model_svc.model.upload import to_device, together
from tokenwire.sampling import SamplingParams


def has_bias(params: SamplingParams) -> bool:
    """Whether a request has anything to keep here."""
    single = any(len(banned) == 1 for banned in params.banned_sequences)
    return single or bool(params.logit_bias) or bool(params.allowed_token_ids)


class TokenBias:
    """Rows 0 to num_slots - 1 over the vocabulary; takes memory from the first use on."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._owners = [-1] * num_slots
        """By slot: the sequence_id whose bias is in the row."""

    @cached_property
    def table(self) -> Tensor:
        """[num_slots, vocab_size] fp32: what is added to the logits; minus infinity where a token may not be drawn."""
        return torch.zeros(len(self._owners), self._vocab_size, dtype=torch.float32, device=self._device)

    def update(self, sequences: Rows[Sequence]) -> None:
        """Write the rows of those sequences that are new under their slot. Different ones have different slots."""
        fresh = {s.slot: s for s in sequences if self._owners[s.slot] != s.sequence_id}
        if fresh:
            self._write([(slot, sequence.sampling) for slot, sequence in fresh.items()])
            for slot, sequence in fresh.items():
                self._owners[slot] = sequence.sequence_id

    def forget(self) -> None:
        """No row is anyone's any more."""
        self._owners = [-1] * len(self._owners)

    def _write(self, rows: list[tuple[int, SamplingParams]]) -> None:
        biased = [self._entries(slot, [token for token, _ in params.logit_bias]) for slot, params in rows]
        allowed = [self._entries(slot, params.allowed_token_ids) for slot, params in rows]
        banned = [self._entries(slot, [ids[0] for ids in p.banned_sequences if len(ids) == 1]) for slot, p in rows]
        values = [value for _, p in rows for token, value in p.logit_bias if token < self._vocab_size]
        otherwise = [-np.inf if params.allowed_token_ids else 0.0 for _, params in rows]
        slots, bias_at, allow_at, ban_at = together(
            [np.array([slot for slot, _ in rows]), *(np.concatenate(part) for part in (biased, allowed, banned))],
            self._device,
        )
        floats = to_device(np.array([*otherwise, *values], dtype=np.float32), self._device)
        fill, bias = torch.split(floats, [len(otherwise), len(values)])
        self.table[slots] = fill[:, None]
        flat = self.table.view(-1)
        flat.index_fill_(0, allow_at, 0.0)
        flat.index_add_(0, bias_at, bias)
        flat.index_fill_(0, ban_at, -torch.inf)

    def _entries(self, slot: int, token_ids: Iterable[int]) -> Ints:
        """Where these tokens are in the flattened table; ids beyond the logits' width have no place in it."""
        ids = np.array(tuple(token_ids), dtype=np.int64)
        return ids[ids < self._vocab_size] + slot * self._vocab_size
