"""Adapters within the native product, against float64 and against rows without them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model_svc.model.step_adapters import StepAdapters, step_adapters, step_rows
from model_svc.native.adapters import AdapterPart, AdapterTable, pack_adapter
from model_svc.native.kernels import Adapted, linear
from tests.model_svc.native.cases import generator, needs_kernels
from tests.model_svc.native.test_linear import PACKS, made, weight_of

pytestmark = needs_kernels

NUM_SLOTS = 3
PARTS = {
    "one": ((192, 576), [(0, 192, 8)]),
    "aligned": ((192, 64), [(0, 96, 4), (96, 48, 7), (144, 48, 16)]),
    "across blocks": ((100, 96), [(0, 30, 3), (30, 40, 5), (70, 30, 2)]),
    "some parts": ((200, 64), [(60, 70, 33)]),
    "within a block": ((49, 32), [(10, 3, 1), (20, 29, 2)]),
}


def parts_of(name: str, dtype: torch.dtype, seed: int) -> list[AdapterPart]:
    (_, num_inputs), parts = PARTS[name]
    random = generator(seed)
    return [
        AdapterPart(
            first, torch.randn(rank, num_inputs, generator=random).to(dtype) / num_inputs**0.5,
            torch.randn(size, rank, generator=random).to(dtype), 0.25 * (1 + index),
        )
        for index, (first, size, rank) in enumerate(parts)
    ]  # fmt: skip


def delta(x: Tensor, parts: list[AdapterPart], num_outputs: int) -> Tensor:
    found = torch.zeros(len(x), num_outputs, dtype=torch.float64)
    for part in parts:
        hidden = x.double() @ part.down.double().T * part.scale
        found[:, part.first_output : part.first_output + len(part.up)] = hidden @ part.up.double().T
    return found


def step_of(slots: list[int]) -> StepAdapters:
    found = step_adapters(np.array(slots), NUM_SLOTS, torch.device("cpu"))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("num_rows", [1, 5, 9, 40, 130])
def test_each_row_gets_what_its_adapter_adds(kind: str, name: str, num_rows: int) -> None:
    shape = PARTS[name][0]
    x, weight, bias, residual = made(kind, num_rows, shape)
    packed, dtype = PACKS[kind][0](weight, bias), PACKS[kind][1]
    adapters = {slot: parts_of(name, dtype, slot) for slot in (0, 2)}
    table = AdapterTable(NUM_SLOTS)
    for slot, parts in adapters.items():
        table.set(slot, pack_adapter(parts, shape[0]))
    slots = [(-1, 0, 2, 1)[(7 * row) % 4] for row in range(num_rows)]  # slot 1 is empty
    out, plain = (torch.full((num_rows, shape[0]), torch.nan, dtype=dtype) for _ in range(2))
    linear(x, packed, out, residual, Adapted(table, step_rows(step_of([*slots[1:], 2]))))
    linear(x, packed, plain, residual)
    expected = x.double() @ weight_of(kind, weight).T + bias.double() + residual.double()
    tolerance = 1e-4 if dtype == torch.float32 else 4e-2
    for row, slot in enumerate([*slots[1:], 2]):
        if slot in (-1, 1):
            assert torch.equal(out[row], plain[row]), "a row without an adapter has the bits it has alone"
        else:
            wanted = expected[row] + delta(x[row : row + 1], adapters[slot], shape[0])[0]
            scale = wanted.abs().max()
            assert float((out[row].double() - wanted).abs().max() / scale) < tolerance


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    shape, kind = PARTS["aligned"][0], "bf16"
    x, weight, _, _ = made(kind, 33, shape)
    packed, table = PACKS[kind][0](weight), AdapterTable(NUM_SLOTS)
    for slot in range(NUM_SLOTS):
        table.set(slot, pack_adapter(parts_of("aligned", torch.bfloat16, slot), shape[0]))
    slots = [(0, 1, 2, -1)[row % 4] for row in range(33)]
    together = torch.empty(33, shape[0], dtype=torch.bfloat16)
    linear(x, packed, together, adapted=Adapted(table, step_rows(step_of(slots))))
    for row in range(0, 33, 4):
        alone = torch.empty(1, shape[0], dtype=torch.bfloat16)
        linear(x[row : row + 1], packed, alone, adapted=Adapted(table, step_rows(step_of(slots[row : row + 1]))))
        assert torch.equal(alone[0], together[row])


def test_tokens_that_do_not_fit_the_rows_are_refused() -> None:
    x, weight, _, _ = made("fp32", 4, (48, 96))
    out = torch.empty(4, 48)
    with pytest.raises(ValueError, match="3 tokens do not fit 4 rows"):
        linear(
            x, PACKS["fp32"][0](weight), out, adapted=Adapted(AdapterTable(NUM_SLOTS), step_rows(step_of([0, 1, 0])))
        )


def test_a_step_without_adapters_is_none_and_parts_of_one_are_its_own() -> None:
    assert step_adapters(np.array([-1, -1]), NUM_SLOTS, torch.device("cpu")) is None
    step = step_of([2, -1, 0, 2])
    assert [(slot, tokens.tolist()) for slot, tokens in step.groups] == [(0, [2]), (2, [0, 3])]
    later = step.part(slice(2, None))
    assert later is not None and [(slot, tokens.tolist()) for slot, tokens in later.groups] == [(0, [0]), (2, [1])]
    assert step.part(slice(1, 2)) is None
