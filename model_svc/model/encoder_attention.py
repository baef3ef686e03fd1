"""Bidirectional attention for encoders from `transformers`: many sequences in one row, each seeing itself alone.

An encoder loaded with `attn_implementation=ENCODER_ATTENTION` calls `packed_attention` in every layer; which tokens
belong together comes through the model's `Handover`. The name is deliberately absent from the AttentionMaskInterface:
`transformers` then builds no mask. Linear layers see no padding; sequences of similar length, which the caller puts
side by side, attend in one call, padded there alone. Knows no model.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from model_svc.model.handover import handed_to
from model_svc.model.upload import to_device

ENCODER_ATTENTION = "tokenwire_encoder"


LONGER_BY, LONGER_TOKENS = 1.5, 8
"""How much longer than the shortest, times and tokens more, the longest of sequences may be that attend in one call."""


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Sequences of similar length that attend in one call, in attention alone padded to the longest, L."""

    start: int
    stop: int
    """Their tokens in the row."""
    num_sequences: int
    gathered: Tensor | None
    """[n * L] int64: the token of the row at each place, whatever token where there is none; None: all are as long."""
    mask: Tensor | None
    """[n, 1, 1, L] bool: where there is a token."""
    real: Tensor | None
    """[stop - start] int64: the places that hold a token."""


@dataclass(frozen=True)
class Packed:
    """Which tokens of a row of T belong together."""

    lengths: tuple[int, ...]
    """Of each sequence, in the order of the row; ascending, or there are more calls than need be."""
    starts: Tensor
    """[N + 1] int32, on the device: where each begins, then T."""

    @cached_property
    def groups(self) -> tuple[LengthGroup, ...]:
        """Runs of similar length; made once a step."""
        starts = np.concatenate(([0], np.cumsum(self.lengths)))
        found: list[LengthGroup] = []
        first = 0
        while first < len(self.lengths):
            after = first + 1
            while after < len(self.lengths) and self._belongs(self.lengths[after], self.lengths[first]):
                after += 1
            found.append(self._group(starts[first : after + 1]))
            first = after
        return tuple(found)

    @staticmethod
    def _belongs(length: int, shortest: int) -> bool:
        return shortest <= length <= LONGER_BY * shortest + LONGER_TOKENS

    def _group(self, starts: NDArray[np.int64]) -> LengthGroup:
        """`starts`: of the sequences of a group, then where its last one ends."""
        lengths = np.diff(starts)
        start, stop, longest = int(starts[0]), int(starts[-1]), int(lengths.max())
        if lengths.min() == longest:
            return LengthGroup(start, stop, len(lengths), None, None, None)
        places = np.arange(longest)
        real = places < lengths[:, None]
        tokens = np.where(real, starts[:-1, None] + places, starts[:-1, None])
        device = self.starts.device
        return LengthGroup(
            start,
            stop,
            len(lengths),
            to_device(tokens.ravel(), device),
            to_device(real[:, None, None, :], device),
            to_device(np.flatnonzero(real), device),
        )


class EncoderBackend(Protocol):
    """Computes attention of packed sequences."""

    name: str

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float | None) -> Tensor:
        """[1, T, num_heads, size]. `query`, `key`, `value`: [1, num_heads, T, size]. `scale` None: 1 / sqrt(size)."""


class SdpaEncoderBackend:
    """torch's scaled_dot_product_attention, one call for all sequences of similar length; on any device."""

    name = "sdpa"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float | None) -> Tensor:
        """See `EncoderBackend.attend`."""
        by_token = [x[0].transpose(0, 1) for x in (query, key, value)]  # [T, H, D]
        parts = [self._attend(by_token, group, scale) for group in packed.groups]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)

    @staticmethod
    def _attend(by_token: list[Tensor], group: LengthGroup, scale: float | None) -> Tensor:
        """[stop - start, H, D]."""
        if group.gathered is None:
            rows = [x[group.start : group.stop] for x in by_token]
        else:
            rows = [x.index_select(0, group.gathered) for x in by_token]
        # [n * L, H, D] -> [n, H, L, D]
        q, k, v = (torch.unflatten(x, 0, (group.num_sequences, -1)).transpose(1, 2) for x in rows)
        output = scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scale)
        output = output.transpose(1, 2).flatten(0, 1)
        return output if group.real is None else output.index_select(0, group.real)


class VarlenEncoderBackend:
    """torch's varlen_attn, one call for all; on a GPU, in 16-bit formats."""

    name = "varlen"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float | None) -> Tensor:
        """See `EncoderBackend.attend`."""
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        longest = max(packed.lengths)
        output = varlen_attn(q, k, v, packed.starts, packed.starts, longest, longest, scale=scale)
        assert isinstance(output, Tensor)  # not a pair: nothing was asked for beside it
        return output.unsqueeze(0)


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """What a forward pass hands to every call of `packed_attention`."""

    packed: Packed
    backend: EncoderBackend


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in each layer. Raises RuntimeError for a mask, which nobody should have made."""
    if attention_mask is not None:
        raise RuntimeError("an encoder's attention was given a mask: sequences are told apart by their lengths")
    call: EncoderCall = handed_to(module)
    return call.backend.attend(query, key, value, call.packed, scaling), None


def encoder_backend(device: torch.device, dtype: torch.dtype) -> EncoderBackend:
    """The backend for this device and format: on a GPU in 16 bits varlen_attn, where a call gives the right numbers."""
    if device.type == "cpu" or dtype not in (torch.float16, torch.bfloat16):
        return SdpaEncoderBackend()
    varlen, reference = VarlenEncoderBackend(), SdpaEncoderBackend()
    query, key, value = (torch.randn(1, 2, 12, 32, device=device, dtype=dtype) for _ in range(3))
    packed = Packed((5, 7), torch.tensor([0, 5, 12], dtype=torch.int32, device=device))
    try:
        found = varlen.attend(query, key, value, packed, None)
        wanted = reference.attend(query, key, value, packed, None)
    except RuntimeError:
        return reference
    return varlen if torch.allclose(found.float(), wanted.float(), atol=2e-2, rtol=2e-2) else reference


AttentionInterface.register(ENCODER_ATTENTION, packed_attention)
