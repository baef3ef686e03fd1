"""Which of a step's tokens go through which adapter, as the products of adapters take it.

Knows tokens and slots of adapters; does not know adapters, sequences or layers.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_svc.model.upload import to_device
from model_svc.native.adapters import StepRows

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StepAdapters:
    """A step's tokens by adapter, on the device."""

    tokens: Tensor
    """[M] int64: the tokens that have an adapter, slot after slot; what follows the last is not read."""
    starts: Tensor
    """[num_slots + 1] int64: where in `tokens` those of each slot begin."""
    slot_of: Ints
    """[T], on the host: each token's slot, -1 for none. Empty in a recorded step, whose tokens vary."""

    @property
    def num_slots(self) -> int:
        """Slots there are."""
        return len(self.starts) - 1

    @cached_property
    def groups(self) -> list[tuple[int, Tensor]]:
        """The slots in use, and the tokens of each."""
        starts = self.starts.tolist()
        spans = ((slot, starts[slot], starts[slot + 1]) for slot in range(self.num_slots))
        return [(slot, self.tokens[start:stop]) for slot, start, stop in spans if stop > start]

    def part(self, span: slice) -> "StepAdapters | None":
        """Those of some tokens as a step of their own; None where none of them has one."""
        return step_adapters(self.slot_of[span], self.num_slots, self.tokens.device)


def step_adapters(slot_of: Ints, num_slots: int, device: torch.device) -> StepAdapters | None:
    """A step's tokens with these slots, -1 for none; None where no token has one. On a GPU nothing is waited for."""
    order = np.argsort(slot_of, kind="stable")
    sorted_slots = slot_of[order]
    starts = np.searchsorted(sorted_slots, np.arange(num_slots + 1))
    if starts[0] == len(slot_of):
        return None
    both = to_device(np.concatenate((order[starts[0] :], starts - starts[0])), device)
    num_tokens = len(both) - num_slots - 1
    return StepAdapters(both[:num_tokens], both[num_tokens:], slot_of)


def step_rows(step: StepAdapters) -> StepRows:
    """The step's tokens as the CPU kernels take them."""
    return StepRows(torch.from_numpy(step.slot_of), step.tokens, step.starts)
