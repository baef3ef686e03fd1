import pytest
import torch
from torch import Tensor

from model_svc.native.kernels import gelu_tanh_mul, rms_norm, rope_store, silu_mul
from tests.model_svc.native.cases import DTYPE_IDS, DTYPES, assert_close, generator, needs_kernels

pytestmark = [needs_kernels, pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)]
EPS = 1e-5


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """In float64, with LlamaRMSNorm's rounding between its two products."""
    whole = x.double()
    return weight.double() * (whole * (whole.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()).to(x.dtype).double()


@pytest.mark.parametrize("num_rows", [1, 3, 130])
@pytest.mark.parametrize("size", [1, 15, 16, 33, 576, 2050])
def test_rms_norm(size: int, num_rows: int, dtype: torch.dtype) -> None:
    x, weight = random(num_rows, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    out = torch.empty_like(x)
    rms_norm(x, weight, EPS, out)
    assert_close(out, normed(x, weight), bf16=2**-7)
    residual = random(num_rows, size, dtype=dtype, seed=2)
    total = residual + x
    rms_norm(x, weight, EPS, out, residual)
    assert torch.equal(residual, total)
    assert_close(out, normed(total, weight), bf16=2**-7)
    rms_norm(x, weight, EPS, x)
    alone = torch.empty_like(x[:1])
    rms_norm(total[:1].contiguous(), weight, EPS, alone)
    assert torch.equal(alone, out[:1])


@pytest.mark.parametrize("num_rows", [1, 3, 130])
@pytest.mark.parametrize("size", [1, 17, 1536])
def test_activations(size: int, num_rows: int, dtype: torch.dtype) -> None:
    gate_up = random(num_rows, 2 * size, dtype=dtype) * 4
    gate, up = gate_up.double().chunk(2, -1)
    out = torch.empty(num_rows, size, dtype=dtype)
    silu_mul(gate_up, out)
    assert_close(out, torch.nn.functional.silu(gate) * up)
    gelu_tanh_mul(gate_up, out)
    # torch's own loses the small results of large negative inputs to 1 + tanh.
    assert_close(out, gate * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)) * up)


def test_activations_of_extremes(dtype: torch.dtype) -> None:
    gate_up = torch.tensor([[-1e30, -200, -90, 0, 90, 200, 1, 1, 1, 1, 1, 1]], dtype=dtype)
    out = torch.empty(1, 6, dtype=dtype)
    for function in (silu_mul, gelu_tanh_mul):
        function(gate_up, out)
        assert torch.equal(out, gate_up[:, :6].clamp(min=0))


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size", "value_size"), [(1, 1, 16, 16), (9, 3, 64, 64), (7, 1, 80, 34), (4, 2, 6, 8)]
)
@pytest.mark.parametrize("num_rows", [1, 2, 70])
def test_rope_store(
    num_rows: int, num_heads: int, num_kv_heads: int, size: int, value_size: int, with_norm: bool, rotated: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    width = (num_heads + num_kv_heads) * size + num_kv_heads * value_size
    qkv = random(num_rows, width, dtype=dtype)
    angles = torch.rand(num_rows, size // 2, generator=generator(3)).repeat(1, 2) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    q_norm, k_norm = (random(size, dtype=dtype, seed=seed) if with_norm else None for seed in (4, 5))
    slots = torch.randperm(100, generator=generator(6))[:num_rows]
    key_cache = torch.full((100, num_kv_heads, size), torch.nan, dtype=dtype)
    value_cache = torch.full((100, num_kv_heads, value_size), torch.nan, dtype=dtype)
    q_out = torch.empty(num_rows, num_heads, size, dtype=dtype)
    rope_store(
        qkv,
        cos if rotated else None,
        sin if rotated else None,
        slots,
        key_cache,
        value_cache,
        q_out,
        q_norm,
        k_norm,
        EPS,
    )
    query, key, value = qkv.split([num_heads * size, num_kv_heads * size, num_kv_heads * value_size], -1)

    def expected(part: Tensor, norm: Tensor | None) -> Tensor:
        heads = torch.unflatten(part, -1, (-1, size))
        heads = heads.double() if norm is None else normed(heads, norm).to(dtype).double()
        if not rotated:
            return heads
        low, high = heads.chunk(2, -1)
        return heads * cos.double()[:, None] + torch.cat((-high, low), -1) * sin.double()[:, None]

    close = 2**-6 if with_norm else 2**-8  # the norm may round to the neighbour
    assert_close(q_out, expected(query, q_norm), bf16=close)
    assert_close(key_cache[slots], expected(key, k_norm), bf16=close)
    assert torch.equal(value_cache[slots], torch.unflatten(value, -1, (-1, value_size)))
    others = torch.ones(100, dtype=torch.bool)
    others[slots] = False
    assert key_cache[others].isnan().all() and value_cache[others].isnan().all()


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    x, weight, before = random(130, 1152, dtype=dtype), random(1152, dtype=dtype), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            norm, active = torch.empty_like(x), torch.empty(130, 576, dtype=dtype)
            rms_norm(x, weight, EPS, norm)
            silu_mul(x, active)
            results.append((norm, active))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_what_does_not_fit_is_refused(dtype: torch.dtype) -> None:
    x, other = torch.ones(2, 8, dtype=dtype), torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    weight, out = torch.ones(8, dtype=dtype), torch.empty(2, 8, dtype=dtype)
    for arguments in [
        (x[:, :7], weight, EPS, out),
        (x, weight[:7], EPS, out),
        (x, weight.to(other), EPS, out),
        (x, weight, EPS, out[:1]),
        (x, weight, EPS, out, out[:1]),
        (x.half(), weight, EPS, out),
    ]:
        with pytest.raises(ValueError):
            rms_norm(*arguments)
    for gate_up in (x[:, :7].contiguous(), x.half(), x.repeat(1, 3)):
        with pytest.raises(ValueError):
            silu_mul(gate_up, out)
    key_cache, slots = torch.zeros(4, 1, 2, dtype=dtype), torch.zeros(2, dtype=torch.int64)
    query = torch.empty(2, 2, 2, dtype=dtype)
    angles = torch.ones(2, 2, dtype=dtype)
    rope_store(x, angles, angles, slots, key_cache, key_cache.clone(), query)
    for wrong in [
        (x, angles, None, slots, key_cache, key_cache, query),
        (x, angles, angles[:1], slots, key_cache, key_cache, query),
        (x, angles, angles, slots.int(), key_cache, key_cache, query),
        (x, angles, angles, slots, key_cache.to(other), key_cache, query),
        (x, angles, angles, slots, key_cache[0], key_cache, query),
        (x, angles, angles, slots, key_cache, key_cache, query[:, :1]),
    ]:
        with pytest.raises(ValueError):
            rope_store(*wrong)
