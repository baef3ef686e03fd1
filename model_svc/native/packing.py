"""Weights of linear layers in the layouts that `linear.cpp` reads: fp32, bf16, int8 and int4. Knows no kernel.

Outputs lie in blocks of `BLOCK`, the last one padded with zeros. What a weight is rounded to is decided here.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.functional import pad

INT4_GROUP = 32
"""Input features that share a scale and an offset."""
BLOCK = 48
"""Outputs that one register tile covers."""
VECTORS, LANES = 3, 16
NIBBLES = 4
"""In a word of int4."""


class Kind(IntEnum):
    """How a packed weight is stored; the numbers are those of `linear.cpp`."""

    FP32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight of a linear layer with `num_outputs` x `num_inputs` weights, made by a `pack` function."""

    kind: Kind
    num_outputs: int
    num_inputs: int
    storage: Tensor
    """fp32: [blocks, K, 48]; bf16 and int8: [blocks, K / 2, 48, 2]; int4: [blocks, K / 32, 960] bytes."""
    scale: Tensor | None
    """int8: [blocks * 48] fp32, a factor per output."""
    bias: Tensor | None
    """[blocks * 48] fp32."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs it is multiplied with."""
        return torch.float32 if self.kind is Kind.FP32 else torch.bfloat16

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.nbytes for part in (self.storage, self.scale, self.bias) if part is not None)


def pack(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    """`weight` [N, K] in float32 or bfloat16, kept as it is. Raises ValueError."""
    _check(weight, bias, (torch.float32, torch.bfloat16))
    if weight.dtype == torch.bfloat16:
        return PackedWeight(Kind.BF16, weight.shape[0], weight.shape[1], _in_pairs(weight), None, _padded(bias))
    blocks = _in_blocks(weight).view(-1, BLOCK, weight.shape[1])
    return PackedWeight(
        Kind.FP32, weight.shape[0], weight.shape[1], blocks.transpose(1, 2).contiguous(), None, _padded(bias)
    )


def pack_int8(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    """`weight` [N, K] in bfloat16 as int8 with a scale per output, as `Int8Linear` rounds it. Raises ValueError."""
    _check(weight, bias, (torch.bfloat16,))
    scale = weight.float().abs().amax(1).div(127).clamp(min=1e-12).to(weight.dtype).float()
    quantized = weight.float().div(scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return PackedWeight(
        Kind.INT8, weight.shape[0], weight.shape[1], _in_pairs(quantized), _padded(scale), _padded(bias)
    )


def pack_int4(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    """`weight` [N, K] in bfloat16 as int4 in groups of `INT4_GROUP` inputs, as `int4_groups` rounds it.

    Raises ValueError, also where the groups do not come out even.
    """
    _check(weight, bias, (torch.bfloat16,))
    num_outputs, num_inputs = weight.shape
    if num_inputs % INT4_GROUP:
        raise ValueError(f"weight: int4 needs a multiple of {INT4_GROUP} inputs, and these are {num_inputs}")
    quantized, scale, offset = int4_groups(weight)
    num_groups = num_inputs // INT4_GROUP
    # input = 2 (4 m + nibble) + parity within its group
    nibbles = _in_blocks(quantized).view(-1, VECTORS, LANES, num_groups, 4, NIBBLES, 2).permute(0, 3, 4, 1, 2, 6, 5)
    words = torch.zeros(nibbles.shape[:-1], dtype=torch.int32)
    for nibble in range(NIBBLES):
        words |= nibbles[..., nibble] << 4 * nibble
    words = torch.where(words >= 2**15, words - 2**16, words).to(torch.int16)
    num_blocks = len(words)
    parts = [words.view(num_blocks, num_groups, -1)]
    parts += [
        _in_blocks(part).view(num_blocks, BLOCK, num_groups).transpose(1, 2).contiguous() for part in (scale, offset)
    ]
    storage = torch.cat([part.view(torch.uint8) for part in parts], dim=-1)
    return PackedWeight(Kind.INT4, num_outputs, num_inputs, storage, None, _padded(bias))


def int4_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The q [out, in] int32 from 0 to 15, and scale and offset [out, in / INT4_GROUP] in the weight's dtype.

    They span each group's values from the least to the greatest.
    """
    groups = torch.unflatten(weight.float(), 1, (-1, INT4_GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    # Rounded before they are used, so that q makes up for the rounding.
    scale = ((high - low) / 15).clamp(min=1e-6).to(weight.dtype)
    offset = ((high + low + scale.float()) / 2).to(weight.dtype)  # the value of q = 8
    quantized = ((groups - offset.float()[..., None]) / scale.float()[..., None]).round().add(8).clamp(0, 15)
    return quantized.flatten(1).to(torch.int32), scale, offset


def _check(weight: Tensor, bias: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> None:
    if weight.dim() != 2 or 0 in weight.shape or weight.device.type != "cpu" or weight.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"weight: {weight.dtype} {list(weight.shape)} on {weight.device} cannot be packed: "
            f"[outputs, inputs], {allowed}, on the CPU"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias: {list(bias.shape)} does not fit {weight.shape[0]} outputs")


def _in_blocks(weight: Tensor) -> Tensor:
    """With zeros for outputs up to a whole block."""
    return pad(weight, (0, 0, 0, -len(weight) % BLOCK)).contiguous()


def _in_pairs(weight: Tensor) -> Tensor:
    """[blocks, pairs of inputs, BLOCK, 2]."""
    even = _in_blocks(pad(weight, (0, weight.shape[1] % 2)))
    return even.view(-1, BLOCK, even.shape[1] // 2, 2).transpose(1, 2).contiguous()


def _padded(values: Tensor | None) -> Tensor | None:
    """fp32, with zeros up to a whole block."""
    return None if values is None else pad(values.detach().float(), (0, -len(values) % BLOCK)).contiguous()
