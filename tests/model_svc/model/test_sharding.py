"""Parts of layers, put together by hand, are the whole; what no plan covers is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from model_svc.model.ranks import Ranks
from model_svc.model.sharding import (
    GatheredColumnParallel,
    RowParallel,
    check_heads,
    column_parallel,
    packed_rows,
    rules_of,
    split,
)
from model_svc.runner import leader
from model_svc.runner.leader import rank_devices
from tests.fakes.tiny_models import CONFIGS
from tokenwire.errors import FailedPrecondition

SIZE = 3


class LoneRanks(Ranks):
    """A rank whose joint operations leave its own part as it is."""

    def add(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


def parts() -> list[LoneRanks]:
    return [LoneRanks(rank, SIZE, torch.device("cpu")) for rank in range(SIZE)]


def model_of(name: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")


@pytest.mark.parametrize("width", [12, 7])
@torch.inference_mode()
def test_linear_parts_make_the_whole_also_where_they_are_uneven(width: int) -> None:
    torch.manual_seed(0)
    up, down, hidden = nn.Linear(5, width), nn.Linear(width, 5), torch.randn(2, 3, 5)
    columns = [column_parallel(up, ranks)(hidden) for ranks in parts()]
    torch.testing.assert_close(torch.cat(columns, -1), up(hidden))
    wide = torch.cat(columns, -1)
    summed = sum(RowParallel(down, ranks)(part) for ranks, part in zip(parts(), columns, strict=True))
    torch.testing.assert_close(summed, down(wide) + (SIZE - 1) * down.bias)
    summed = sum(RowParallel(down, ranks, input_is_whole=True)(wide) for ranks in parts())
    torch.testing.assert_close(summed, down(wide) + (SIZE - 1) * down.bias)
    gathered = torch.cat([GatheredColumnParallel(up, ranks)(hidden) for ranks in parts()], -1)
    torch.testing.assert_close(gathered[..., :width], up(hidden))


def test_packed_weights_are_cut_in_each_half() -> None:
    weight = torch.arange(12.0)[None, :, None]
    assert [packed_rows(weight, ranks).flatten().tolist() for ranks in parts()] == [
        [0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]
    ]  # fmt: skip


def test_spans_cover_every_length_once() -> None:
    for length in range(20):
        covered = [index for ranks in parts() for index in range(length)[ranks.span(length)]]
        assert covered == list(range(length))


@pytest.mark.parametrize(("name", "size"), [("llama", 3), ("llama", 4), ("gpt_neox", 3), ("gemma3_multimodal", 4)])
def test_heads_that_cannot_be_dealt_out_are_refused(name: str, size: int) -> None:
    with pytest.raises(FailedPrecondition, match=f"{size} does not divide the model's . key-value heads"):
        check_heads(CONFIGS[name](), size)
    check_heads(CONFIGS[name](), 2)


@pytest.mark.parametrize("name", ["stablelm", "gpt_oss"])
def test_a_model_without_a_plan_for_its_layers_is_refused(name: str) -> None:
    model = model_of(name)
    with pytest.raises(FailedPrecondition, match=f"no plan to split the layers of {type(model).__name__}"):
        rules_of(model)


def test_a_style_that_is_not_built_is_refused() -> None:
    model = model_of("llama")
    model._tp_plan = {**model.tp_plan, "model.layers.*.mlp": "sequence_parallel"}
    with pytest.raises(FailedPrecondition, match="asks for sequence_parallel, which is not built"):
        rules_of(model)


def test_every_split_weight_is_a_plain_tensor_of_its_part() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["mixtral"](), attn_implementation="eager")
    split(model, rules_of(model), LoneRanks(1, 2, torch.device("cpu")))
    layer = model.model.layers[0]
    shapes = {name: tuple(weight.shape) for name, weight in layer.named_parameters() if weight.dim() > 1}
    assert shapes == {
        "self_attn.q_proj.weight": (16, 32), "self_attn.k_proj.weight": (8, 32), "self_attn.v_proj.weight": (8, 32),
        "self_attn.o_proj.weight": (32, 16), "mlp.gate.weight": (4, 32), "mlp.experts.gate_up_proj": (4, 48, 32),
        "mlp.experts.down_proj": (4, 32, 24),
    }  # fmt: skip
    assert type(layer.self_attn.q_proj) is nn.Linear and layer.self_attn.q_proj.out_features == 16
    assert {type(weight) for weight in model.parameters()} == {nn.Parameter}


def test_ranks_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert rank_devices("auto", 2) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(FailedPrecondition, match="4 ranks take a GPU each, and this machine has 2"):
        rank_devices("cuda", 4)
    with pytest.raises(FailedPrecondition, match="--device cuda:1 cannot be met"):
        rank_devices("cuda:1", 2)


def test_a_config_without_heads_is_refused() -> None:
    config = LlamaConfig()
    config.num_attention_heads = config.num_key_value_heads = 0
    with pytest.raises(FailedPrecondition, match="0 key-value heads"):
        check_heads(config, 2)
