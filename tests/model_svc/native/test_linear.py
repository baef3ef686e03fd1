from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model_svc.native.kernels import linear
from model_svc.native.packing import Kind, PackedWeight, int4_groups, pack, pack_int4, pack_int8
from tests.model_svc.native.cases import assert_close, generator, needs_kernels

pytestmark = needs_kernels

PACKS: dict[str, tuple[Callable[..., PackedWeight], torch.dtype]] = {
    "fp32": (pack, torch.float32),
    "bf16": (pack, torch.bfloat16),
    "int8": (pack_int8, torch.bfloat16),
    "int4": (pack_int4, torch.bfloat16),
}
SHAPES = [(1, 32), (16, 64), (48, 96), (49, 32), (100, 352), (192, 576)]
ODD_SHAPES = [(1, 1), (7, 3), (95, 33), (130, 257)]


def weight_of(kind: str, weight: Tensor) -> Tensor:
    """What the packed weight stands for, in float64."""
    if kind == "int8":
        scale = weight.float().abs().amax(1).div(127).clamp(min=1e-12).to(weight.dtype)[:, None]
        return (weight.float() / scale.float()).round().clamp(-127, 127).double() * scale.double()
    if kind == "int4":
        quantized, scale, offset = int4_groups(weight)
        groups = torch.unflatten(quantized, 1, (-1, 32)).double() - 8
        return (offset.double()[..., None] + scale.double()[..., None] * groups).flatten(1)
    return weight.double()


def made(kind: str, num_rows: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and residual."""
    dtype, random = PACKS[kind][1], generator(shape[0] * 1000 + shape[1])
    sizes = [(num_rows, shape[1]), shape, (shape[0],), (num_rows, shape[0])]
    x, weight, bias, residual = (torch.randn(size, generator=random).to(dtype) for size in sizes)
    return x, weight, bias, residual


def product(x: Tensor, packed: PackedWeight, residual: Tensor | None = None) -> Tensor:
    out = torch.full((len(x), packed.num_outputs), torch.nan, dtype=x.dtype)
    linear(x, packed, out, residual)
    return out


CASES = [(kind, shape) for kind in PACKS for shape in SHAPES + (ODD_SHAPES if kind != "int4" else [])]


@pytest.mark.parametrize("num_rows", [1, 2, 4, 7, 8, 9, 13, 17, 65, 130])
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_product_is_torchs(kind: str, shape: tuple[int, int], num_rows: int) -> None:
    x, weight, bias, residual = made(kind, num_rows, shape)
    expected = x.double() @ weight_of(kind, weight).T
    assert_close(product(x, PACKS[kind][0](weight)), expected)
    with_all = product(x, PACKS[kind][0](weight, bias), residual)
    assert_close(with_all, expected + bias.double() + residual.double())


@pytest.mark.parametrize("kind", PACKS)
def test_a_row_is_the_same_bits_alone_and_among_others(kind: str) -> None:
    x, weight, bias, _ = made(kind, 130, (100, 352))
    packed = PACKS[kind][0](weight, bias)
    together = product(x, packed)
    for num_rows in (1, 2, 4, 5, 8, 9, 12, 13, 16, 17, 33, 64, 65):
        for first in (0, 130 - num_rows):
            assert torch.equal(product(x[first : first + num_rows], packed), together[first : first + num_rows])


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("num_rows", [1, 8, 130])
def test_threads_change_no_bit(kind: str, num_rows: int) -> None:
    x, weight, bias, _ = made(kind, num_rows, (192, 576))
    packed, before = PACKS[kind][0](weight, bias), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = product(x, packed)
        torch.set_num_threads(2)
        assert torch.equal(product(x, packed), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", PACKS)
def test_residual_may_be_the_output(kind: str) -> None:
    x, weight, _, residual = made(kind, 5, (100, 352))
    packed = PACKS[kind][0](weight)
    expected = product(x, packed, residual)
    linear(x, packed, residual, residual)
    assert torch.equal(residual, expected)


def test_no_input_beyond_an_odd_row_is_read() -> None:
    x, weight, _, _ = made("bf16", 1, (7, 3))
    beyond = torch.full((8,), torch.nan, dtype=torch.bfloat16)
    beyond[:3] = x[0]
    assert_close(product(beyond[:3].view(1, 3), pack(weight)), x.double() @ weight.double().T)


def test_every_int8_value_is_kept() -> None:
    weight = torch.arange(-127, 128).to(torch.bfloat16).view(1, -1) * 2
    packed = pack_int8(weight)
    inputs = torch.eye(255, dtype=torch.bfloat16)
    assert packed.kind is Kind.INT8
    assert torch.equal(product(inputs, packed)[:, 0].float(), weight[0].float())
    assert torch.equal(product(inputs[:1], packed)[0].float(), weight[0, :1].float())


def test_packed_weights_are_as_small_as_they_say() -> None:
    weight = torch.zeros(480, 640, dtype=torch.bfloat16)
    assert pack(weight).num_bytes == 480 * 640 * 2
    assert pack_int8(weight).num_bytes == 480 * 640 + 480 * 4
    assert pack_int4(weight).num_bytes == 480 * 640 // 2 + 480 * 20 * 4


def test_what_does_not_fit_is_refused() -> None:
    packed, x = pack_int4(torch.ones(16, 32, dtype=torch.bfloat16)), torch.ones(2, 32, dtype=torch.bfloat16)
    out = torch.empty(2, 16, dtype=torch.bfloat16)
    for wrong_x, wrong_out, residual in [
        (x.float(), out, None),
        (x[:, :31], out, None),
        (torch.ones(32, 2, dtype=torch.bfloat16).T, out, None),
        (x, out[:1], None),
        (x, out.float(), None),
        (x, out, out[:1]),
        (x, out, out.float()),
    ]:
        with pytest.raises(ValueError, match="does not fit"):
            linear(wrong_x, packed, wrong_out, residual)


def test_weights_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs"):
        pack_int4(torch.ones(16, 33, dtype=torch.bfloat16))
    for refusing in (pack_int8, pack_int4):
        with pytest.raises(ValueError, match="torch.bfloat16, on the CPU"):
            refusing(torch.ones(16, 32))
    with pytest.raises(ValueError, match="float32 or torch.bfloat16"):
        pack(torch.ones(16, 32, dtype=torch.float16))
    with pytest.raises(ValueError, match="cannot be packed"):
        pack(torch.ones(16))
    with pytest.raises(ValueError, match="bias"):
        pack(torch.ones(16, 32), torch.ones(15))
