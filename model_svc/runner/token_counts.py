"""Which tokens each running sequence has seen and made, on the device: what penalties are computed from.

One row per persistent slot (`Sequence.slot`). A slot passes to another sequence without notice, so the host remembers
whose tokens a row holds and how many: another owner's row is built anew from all its tokens, the owner's own only gains
what was appended. Does not know what a penalty is.
"""

from collections.abc import Sequence as Rows
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from model_svc.engine.sequence import Sequence
from model_svc.model.paged import Ints
from model_svc.model.upload import together


class TokenCounts:
    """Rows 0 to num_slots - 1 over the vocabulary; takes memory from the first use on."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._owners: list[tuple[int, int]] = [(-1, 0)] * num_slots
        """By slot: (sequence_id, how many of its tokens are in the row)."""

    @cached_property
    def seen(self) -> Tensor:
        """[num_slots, vocab_size] bool: tokens in prompt or output."""
        return torch.zeros(len(self._owners), self._vocab_size, dtype=torch.bool, device=self._device)

    @cached_property
    def outputs(self) -> Tensor:
        """[num_slots, vocab_size] int32: how often a token is in the output, what a resume brought along included."""
        return torch.zeros(len(self._owners), self._vocab_size, dtype=torch.int32, device=self._device)

    def update(self, sequences: Rows[Sequence]) -> None:
        """Bring these sequences' rows up to date: one scatter a table for all of them. Their slots differ."""
        fresh: list[int] = []
        prompts: list[Ints] = []
        outputs: list[Ints] = []
        for sequence in sequences:
            owner, num_counted = self._owners[sequence.slot]
            if owner != sequence.sequence_id:
                fresh.append(sequence.slot)
                num_counted = 0
            first_output = max(num_counted, sequence.num_original_prompt_tokens)
            if num_counted < first_output:
                prompts.append(self._entries(sequence.slot, sequence.token_ids[num_counted:first_output]))
            outputs.append(self._entries(sequence.slot, sequence.token_ids[first_output:]))
            self._owners[sequence.slot] = (sequence.sequence_id, sequence.num_tokens)
        num_outputs = sum(len(entries) for entries in outputs)
        slots, entries = together(
            [np.array(fresh, dtype=np.int64), np.concatenate([*outputs, *prompts])], self._device
        )  # fmt: skip
        if fresh:
            self.seen.index_fill_(0, slots, False)
            self.outputs.index_fill_(0, slots, 0)
        self.seen.view(-1).index_fill_(0, entries, True)
        made = entries[:num_outputs]
        self.outputs.view(-1).scatter_add_(0, made, torch.ones_like(made, dtype=torch.int32))

    def forget(self) -> None:
        """No row is anyone's any more."""
        self._owners = [(-1, 0)] * len(self._owners)

    def _entries(self, slot: int, token_ids: list[int]) -> Ints:
        """Where these tokens are in a flattened table; ids beyond the logits' width have no place in it."""
        ids = np.array(token_ids, dtype=np.int64)
        return ids[ids < self._vocab_size] + slot * self._vocab_size
