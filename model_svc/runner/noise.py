"""`tokenwire.noise.uniform` for a whole batch: the same bits, from integer tensor operations on any device.

torch has no unsigned 64-bit arithmetic worth the name, so values live in int64 as two's complement: sums and products
wrap as they should, and right shifts mask off the copied sign bits. Does not know what the numbers are for.
"""

import torch
from torch import Tensor

from tokenwire.noise import GOLDEN_GAMMA, MIX_1, MIX_2


def as_int64(value: int) -> int:
    """The int64 with the same 64 bits as the unsigned `value`."""
    return value - 2**64 if value >= 2**63 else value


def uniform(seeds: Tensor, choices: Tensor, positions: Tensor) -> Tensor:
    """One number in [0, 1) per row. All three: [N] int64, seeds as two's complement; gives [N] float64."""
    gamma = as_int64(GOLDEN_GAMMA)
    state = _mix(seeds + gamma)
    state = _mix((state ^ choices) + gamma)
    state = _mix((state ^ positions) + gamma)
    return _shift_right(state, 11).to(torch.float64) * 2.0**-53


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * as_int64(MIX_1)
    value = (value ^ _shift_right(value, 27)) * as_int64(MIX_2)
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: zeros come in from the left."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
