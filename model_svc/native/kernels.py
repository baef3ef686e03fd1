"""The kernels as functions of torch tensors: checks what it is given, then hands over pointers. Knows no model.

Every tensor is on the CPU and contiguous, float32 or bfloat16 alike within a call (int64 where it says so). Results
are written into tensors that are given; nothing is allocated. What does not fit raises ValueError. A token's result
does not depend on the tokens beside it, nor on the number of threads, to the last bit.
`library.available` says whether any of this can be called.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model_svc.native.adapters import AdapterTable, StepRows
from model_svc.native.library import library
from model_svc.native.packing import PackedWeight

LARGEST_HEAD = 256
_DTYPES = (torch.float32, torch.bfloat16)


class PagedHeads(NamedTuple):
    """The sizes of a layer's cache."""

    num_slots: int
    num_kv_heads: int
    key_size: int
    value_size: int


class Adapted(NamedTuple):
    """What tokens' adapters add to a product."""

    table: AdapterTable
    """The layer's, whose shapes are not checked."""
    rows: StepRows


def linear(
    x: Tensor, weight: PackedWeight, out: Tensor, residual: Tensor | None = None, adapted: Adapted | None = None
) -> None:
    """Product: out [T, N] = x [T, K] Wᵀ + bias + `residual` [T, N], which may be `out`; in fp32, rounded once."""
    num_rows = x.shape[0]
    _fits("x", x, (num_rows, weight.num_inputs), weight.dtype)
    _fits("out", out, (num_rows, weight.num_outputs), weight.dtype)
    if residual is not None:
        _fits("residual", residual, (num_rows, weight.num_outputs), weight.dtype)
    if adapted is not None and adapted.rows.num_tokens != num_rows:
        raise ValueError(f"adapted: {adapted.rows.num_tokens} tokens do not fit {num_rows} rows")
    library().tokenwire_linear(
        weight.kind, x.data_ptr(), weight.storage.data_ptr(), _pointer(weight.scale), _pointer(weight.bias),
        _pointer(residual), out.data_ptr(), num_rows, weight.num_outputs, weight.num_inputs,
        *((None, None) if adapted is None else (adapted.table.address, adapted.rows.address)),
    )  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
    """Norm: out [T, H] = weight [H] · x / rms(x), rounded as LlamaRMSNorm rounds; `out` may be `x`.

    With `residual` [T, H]: that becomes residual + x, in place, and is what is normalised.
    """
    _floats("x", x)
    num_rows, size = _two(x)
    _fits("weight", weight, (size,), x.dtype)
    _fits("out", out, (num_rows, size), x.dtype)
    if residual is not None:
        _fits("residual", residual, (num_rows, size), x.dtype)
    library().tokenwire_rms_norm(
        x.dtype == torch.bfloat16, x.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), _pointer(residual), num_rows,
        size,
    )  # fmt: skip


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """Activation: out [T, I] = silu(gate) · up, where gate and up are the halves of gate_up [T, 2 I]; rounded once."""
    _activate_mul(gate_up, out, gelu=False)


def gelu_tanh_mul(gate_up: Tensor, out: Tensor) -> None:
    """Activation: out [T, I] = gelu(gate) · up, with the approximation by tanh."""
    _activate_mul(gate_up, out, gelu=True)


def _activate_mul(gate_up: Tensor, out: Tensor, *, gelu: bool) -> None:
    _floats("gate_up", gate_up)
    num_rows, width = _two(gate_up)
    _fits("out", out, (num_rows, width // 2), gate_up.dtype)
    if width % 2:
        raise ValueError(f"gate_up: {width} columns have no halves")
    library().tokenwire_activate_mul(
        gate_up.dtype == torch.bfloat16, gelu, gate_up.data_ptr(), out.data_ptr(), num_rows, width // 2
    )


def rope_store(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    q_out: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Queries, keys and values of T tokens, normalised and rotated: queries to `q_out`, the others into the cache.

    qkv [T, (HQ + HK) · D + HK · DV]; q_out [T, HQ, D]; key_cache [num_slots, HK, D] and value_cache [num_slots, HK, DV]
    are written at `slots` [T] int64, which are not checked. q_norm, k_norm [D]: an RMS norm of each head comes first.
    cos, sin [T, D], as transformers' rotary modules give them, rotate half against half; None: no rotation.
    """
    _floats("qkv", qkv)
    heads, num_rows = _paged_heads(key_cache, value_cache, 3), qkv.shape[0]
    num_heads, size = q_out.shape[1] if q_out.dim() == 3 else 0, heads.key_size
    width = (num_heads + heads.num_kv_heads) * size + heads.num_kv_heads * heads.value_size
    _fits("qkv", qkv, (num_rows, width), qkv.dtype)
    _fits("q_out", q_out, (num_rows, num_heads, size), qkv.dtype)
    _fits("slots", slots, (num_rows,), torch.int64)
    _fits("key_cache", key_cache, (heads.num_slots, heads.num_kv_heads, size), qkv.dtype)
    _fits("value_cache", value_cache, (heads.num_slots, heads.num_kv_heads, heads.value_size), qkv.dtype)
    if (cos is None) != (sin is None) or size % 2:
        raise ValueError("cos, sin: both or neither, and heads of an even size")
    for name, angles in (("cos", cos), ("sin", sin)):
        if angles is not None:
            _fits(name, angles, (num_rows, size), qkv.dtype)
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            _fits(name, norm, (size,), qkv.dtype)
    library().tokenwire_rope_store(
        qkv.dtype == torch.bfloat16, qkv.data_ptr(), _pointer(cos), _pointer(sin), slots.data_ptr(),
        key_cache.data_ptr(), value_cache.data_ptr(), q_out.data_ptr(), _pointer(q_norm), _pointer(k_norm), eps,
        num_rows, num_heads, heads.num_kv_heads, size, heads.value_size,
    )  # fmt: skip


def attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    query_starts: Tensor,
    scale: float,
    window: int,
    out: Tensor,
) -> None:
    """Causal attention of a step's tokens over the paged cache; the meaning of the arguments is `PagedStep`'s.

    q [T, HQ, D]; key_cache [num_blocks, block_size, HK, D], value_cache likewise with DV; table [N, M], lengths [N] and
    query_starts [N + 1] int64, whose values are not checked; out [T, HQ · DV]. A token sees itself and what is before
    it, at most `window` positions; 0: all. A row of length 0 gets zeros. Slots that a row does not own may hold
    anything. A token's output is the same bits in any batch, and in any chunk of its prompt.
    """
    _floats("q", q)
    heads = _paged_heads(key_cache, value_cache, 4)
    num_rows, block_size = table.shape[0], key_cache.shape[1]
    num_tokens, num_heads = q.shape[0], q.shape[1] if q.dim() == 3 else 0
    _fits("q", q, (num_tokens, num_heads, heads.key_size), q.dtype)
    _fits("key_cache", key_cache, (heads.num_slots, block_size, heads.num_kv_heads, heads.key_size), q.dtype)
    _fits("value_cache", value_cache, (heads.num_slots, block_size, heads.num_kv_heads, heads.value_size), q.dtype)
    _fits("table", table, (num_rows, table.shape[-1]), torch.int64)
    _fits("lengths", lengths, (num_rows,), torch.int64)
    _fits("query_starts", query_starts, (num_rows + 1,), torch.int64)
    _fits("out", out, (num_tokens, num_heads * heads.value_size), q.dtype)
    if num_heads == 0 or num_heads % heads.num_kv_heads:
        raise ValueError(f"q: {num_heads} heads cannot share {heads.num_kv_heads} key heads")
    for name, size in (("key_cache", heads.key_size), ("value_cache", heads.value_size)):
        if size > LARGEST_HEAD or size % 2:
            raise ValueError(f"{name}: heads of {size} are not taken: even, at most {LARGEST_HEAD}")
    if scale <= 0 or window < 0:
        raise ValueError(f"scale: {scale}, window: {window}: a positive factor, and at least 0")
    library().tokenwire_attention(
        q.dtype == torch.bfloat16, q.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(), table.data_ptr(),
        table.shape[1], lengths.data_ptr(), query_starts.data_ptr(), num_rows, scale, window, out.data_ptr(), num_heads,
        heads.num_kv_heads, heads.key_size, heads.value_size, block_size,
    )  # fmt: skip


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _floats(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: {tensor.dtype} is not taken: float32 or bfloat16")


def _two(tensor: Tensor) -> tuple[int, int]:
    """The shape of a matrix, or one that `_fits` refuses."""
    if tensor.dim() != 2 or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{list(tensor.shape)} on {tensor.device}: a contiguous matrix on the CPU is wanted")
    return tensor.shape[0], tensor.shape[1]


def _paged_heads(key_cache: Tensor, value_cache: Tensor, dims: int) -> PagedHeads:
    if key_cache.dim() != dims or value_cache.dim() != dims:
        raise ValueError(f"key_cache, value_cache: {dims} dimensions, not {key_cache.dim()} and {value_cache.dim()}")
    return PagedHeads(key_cache.shape[0], key_cache.shape[-2], key_cache.shape[-1], value_cache.shape[-1])


def _fits(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
        raise ValueError(
            f"{name}: {tensor.dtype} {list(tensor.shape)} strides {list(tensor.stride())} on {tensor.device} "
            f"does not fit: {dtype} {list(shape)}, contiguous, on the CPU"
        )
