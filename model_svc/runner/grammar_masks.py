"""Applies the bits that say which tokens a constraint allows, on the device. Does not know where they come from."""

import numpy as np
import torch
from torch import Tensor


def forbid(scores: Tensor, rows: Tensor, bits: Tensor) -> None:
    """Minus infinity for what the bits do not allow, in these rows of `scores` [A, vocab_size] fp32, in place.

    `rows`: [C] int64. `bits`: [C, B] uint8, a bit per token id, least significant first. Does not wait for a GPU.
    """
    width = scores.shape[-1]
    if scores.device.type == "cpu":
        table = scores.numpy()  # numpy, as torch would hand so little to several threads and wait for them
        forbidden = np.unpackbits(~bits.numpy(), axis=1, count=width, bitorder="little").view(np.bool_)
        for row, its_own in zip(rows.tolist(), forbidden, strict=True):
            np.copyto(table[row], -np.inf, where=its_own)
        return
    scores.index_copy_(
        0, rows, scores.index_select(0, rows).masked_fill_(unpacked(bits, width).logical_not_(), -torch.inf)
    )


def unpacked(bits: Tensor, width: int) -> Tensor:
    """[C, width] bool: whether each token is allowed, from [C, B] uint8."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, :, None] >> places & 1).flatten(1)[:, :width].bool()
