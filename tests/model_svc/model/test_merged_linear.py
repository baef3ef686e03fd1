from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import linear

from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.merged_linear import MergedLinear, MergedPart, merge_linears, shared_inputs
from tests.fakes.tiny_models import write_model

CPU = torch.device("cpu")
SIZES = (6, 2, 4)


class Parent(nn.Module):
    """Three linear layers; `between` acts on their input after the first."""

    def __init__(self, *, bias: tuple[bool, ...] = (True, True, True), between: Any = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Linear(5, size, bias=has) for size, has in zip(SIZES, bias, strict=True)
        )
        self.between = between

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        x = self.between(x)
        return [first, self.second(x), self.third(x)]


class Model(nn.Module):
    """As much of a `transformers` model as merging looks at."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.embedding, self.parent = nn.Embedding(7, 5), parent

    def set_attn_implementation(self, name: str) -> None:
        pass

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return self.parent(self.embedding(input_ids))


def loaded(parent: nn.Module) -> LoadedModel:
    torch.manual_seed(0)
    module = Model(parent).requires_grad_(False)
    return cast(LoadedModel, SimpleNamespace(module=module, device=CPU, vocab_size=7))


def merged_names(parent: nn.Module) -> list[list[str]]:
    return [names for _, names in shared_inputs(loaded(parent))]


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_gives_what_the_layers_gave(bias: bool) -> None:
    parent = Parent(bias=(bias, bias, bias))
    model, x = loaded(parent), torch.randn(2, 3, 5)
    layers = [parent.first, parent.second, parent.third]
    wanted, num_parameters = parent(x), sum(p.numel() for p in parent.parameters())
    assert merge_linears(model) == 3
    torch.testing.assert_close(parent(x), wanted)
    assert sum(p.numel() for p in parent.parameters()) == num_parameters
    for before, after in zip(layers, [parent.first, parent.second, parent.third], strict=True):
        assert (after.in_features, after.out_features) == (before.in_features, before.out_features)
        assert torch.equal(after.weight, before.weight)
        assert torch.equal(after.bias, before.bias) if bias else after.bias is None


def test_nobody_gets_what_was_computed_for_another_input() -> None:
    parent = Parent()
    model, x, y = loaded(parent), torch.randn(2, 5), torch.randn(2, 5)
    wanted_x, wanted_y = parent(x), parent(y)
    merge_linears(model)
    first, second, third = parent.first, parent.second, parent.third
    assert isinstance(first, MergedLinear) and isinstance(second, MergedPart)
    first(x)
    torch.testing.assert_close(second(y), wanted_y[1])
    torch.testing.assert_close(second(x), wanted_x[1])
    x.copy_(y)
    torch.testing.assert_close(second(x), wanted_y[1])  # its slice of the old x was taken
    torch.testing.assert_close(first(x), wanted_y[0])  # the first always computes
    torch.testing.assert_close([second(x), third(x)], wanted_y[1:])
    assert first._input is None and first._kept == [None, None], "nothing is kept once all have been taken"
    torch.testing.assert_close(third(x), wanted_y[2])


def test_what_is_not_merged() -> None:
    assert merged_names(Parent()) == [["first", "second", "third"]]
    assert merged_names(Parent(bias=(False, True, True))) == [["second", "third"]]
    assert merged_names(Parent(between=lambda x: x.clone())) == [["second", "third"]]
    assert merged_names(Parent(between=lambda x: x.mul_(2))) == [["second", "third"]], "changed in place"
    tied = Parent()
    tied.third.weight = nn.Parameter(tied.third.weight[:2])
    tied.second.weight = tied.third.weight
    assert merged_names(tied) == []
    hooked = Parent()
    hooked.first.register_forward_hook(lambda layer, arguments, output: output * 2)
    assert merged_names(hooked) == [["second", "third"]]
    shared = Parent()
    shared.third = shared.second
    assert merged_names(shared) == []


def test_a_model_that_fails_stays_as_it_was() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    parent = Parent(between=fails)
    assert merge_linears(loaded(parent)) == 0
    assert type(parent.first) is nn.Linear and not parent.first._forward_hooks


@pytest.mark.parametrize(
    ("name", "num_merged"), [("llama", 10), ("qwen2", 10), ("phi3", 0), ("gpt_neox", 0), ("deepseek_v3", 8)]
)
def test_families(tmp_path: Path, name: str, num_merged: int) -> None:
    """Two layers each: q, k, v, gate and up; models with one layer for them have nothing to merge."""
    assert merge_linears(load_model(write_model(tmp_path, name), CPU, "float32")) == num_merged


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("gathers", [False, True])
def test_layers_sharded_by_rows_merge_unless_their_output_is_changed(mesh: Any, gathers: bool) -> None:
    """As transformers' tensor parallelism leaves them: DTensor parameters and a `forward` of its own."""
    parent = Parent(bias=(False, False, False))
    for layer in (parent.first, parent.second, parent.third):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight, mesh, [Shard(0)]), requires_grad=False)

        def forward(x: Tensor, layer: nn.Linear = layer) -> Tensor:
            output = linear(x, layer.weight.to_local())  # type: ignore[operator]
            return output.repeat(1, 1, 2) if gathers else output

        layer.forward = forward  # type: ignore[method-assign]
    model, x = loaded(parent), torch.randn(1, 3, 5)
    wanted = parent(x)
    assert merge_linears(model) == (0 if gathers else 3)
    torch.testing.assert_close(parent(x), wanted)
