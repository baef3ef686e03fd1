"""What of an adapter's files is refused, and that the reason names it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_svc.adapter_config import adapter_config_of
from model_svc.model.adapter_files import read_adapter
from model_svc.model.adapter_places import Places, find_places
from model_svc.model.loader import load_model
from model_svc.model.merged_linear import merge_linears
from tests.fakes.peft_adapters import write_adapter
from tests.fakes.tiny_models import write_model
from tokenwire.errors import FailedPrecondition, NotFound

Q = "base_model.model.model.layers.1.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    write_model(root / "model", "llama")
    return write_adapter(root / "model", root / "adapter")


@pytest.fixture(scope="module")
def places(folder: Path) -> Places:
    model = load_model(folder.parent / "model", torch.device("cpu"), "float32")
    merge_linears(model)
    return find_places(model)


def read(folder: Path, places: Places, **limits: int) -> Any:
    given = {"max_file_bytes": 10**6, "max_rank": 64, **limits}
    return read_adapter(folder, places, torch.float32, given["max_file_bytes"], given["max_rank"])


def changed(
    folder: Path, to: Path, tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda all: all, **config: Any
) -> Path:
    """A copy of an adapter with other tensors and other keys in its config."""
    to.mkdir()
    values = json.loads((folder / "adapter_config.json").read_text()) | config
    (to / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors(load_file(folder / "adapter_model.safetensors")), to / "adapter_model.safetensors")
    return to


def test_merged_layers_are_one_place_with_their_parts(folder: Path, places: Places) -> None:
    found = read(folder, places)
    assert len(found) == 2 * 4 == len(places.all)
    assert sorted(len(parts) for parts in found.values()) == [1] * 4 + [2] * 2 + [3] * 2
    assert places.find("lm_head") is None
    assert {part.scale for parts in found.values() for part in parts} == {2.0}


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (lambda all: {f"{name}.x": value for name, value in all.items()}, "is not served"),
        (lambda all: all | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, "lm_head.lora_A.weight"),
        (lambda all: all | {f"{Q}.lora_magnitude_vector": torch.ones(4)}, f"{Q}.lora_magnitude_vector"),
        (lambda all: all | {f"{Q}.lora_A.weight": torch.ones(4, 31)}, f"{Q}.lora_A.weight' has shape [4, 31]"),
        (lambda all: all | {f"{Q}.lora_B.weight": torch.ones(33, 4)}, f"{Q}.lora_B.weight' has shape [33, 4]"),
        (lambda all: all | {f"{Q}.lora_A.weight": torch.ones(3, 32)}, f"{Q}.lora_A.weight' has shape [3, 32]"),
        (lambda all: all | {f"{Q}.lora_A.weight": torch.full((4, 32), torch.nan)}, "not finite"),
        (lambda all: all | {f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int32)}, "not finite"),
        (lambda all: {k: v for k, v in all.items() if k != f"{Q}.lora_B.weight"}, f"without '{Q}.lora_B.weight'"),
        (lambda all: {k: v for k, v in all.items() if k != f"{Q}.lora_A.weight"}, f"without '{Q}.lora_A.weight'"),
        (
            lambda all: {k.replace(".1.", ".7."): v for k, v in all.items()},
            "no linear layer 'model.layers.7.",
        ),
        (lambda all: {}, "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, places: Places, tmp_path: Path, tensors: Any, named: str
) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        read(changed(folder, tmp_path / "a", tensors, base_model_name_or_path="org/other"), places)
    assert caught.value.reason == "ADAPTER_MISMATCH"
    assert named in caught.value.message and "(it was made for 'org/other')" in caught.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("bias", "all"), ("modules_to_save", ["lm_head"]), ("target_parameters", ["x"]),
        ("fan_in_fan_out", True), ("trainable_token_indices", [1]), ("lora_bias", True), ("layer_replication", [[0]]),
        ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("alora_invocation_tokens", [1]),
        ("peft_type", "IA3"), ("r", 0), ("r", "4"), ("r", 10**6), ("lora_alpha", None), ("lora_alpha", float("nan")),
        ("rank_pattern", {"^q.*": 4}), ("rank_pattern", {"q_proj": 0}), ("alpha_pattern", {"q_proj": "x"}),
        ("rank_pattern", [1]), ("something_new", {"on": True}),
    ],
)  # fmt: skip
def test_what_the_config_asks_for_and_is_not_served_is_named(key: str, value: Any) -> None:
    with pytest.raises(FailedPrecondition, match=key) as caught:
        adapter_config_of(CONFIG | {key: value})
    assert caught.value.reason == "ADAPTER_UNSUPPORTED"


def test_ranks_and_scales_by_layer() -> None:
    config = adapter_config_of(
        CONFIG | {"rank_pattern": {"layers.1.q_proj": 2}, "alpha_pattern": {"v_proj": 1}, "use_dora": False}
    )
    assert [config.rank_of(layer) for layer in ("layers.1.q_proj", "layers.11.q_proj", "v_proj")] == [2, 4, 4]
    assert [config.scale_of(layer) for layer in ("layers.1.q_proj", "q_proj", "a.v_proj")] == [4.0, 2.0, 0.25]
    assert adapter_config_of(CONFIG | {"use_rslora": True}).scale_of("x") == 4.0
    for flag in (1, "true"):
        with pytest.raises(FailedPrecondition, match="use_rslora"):
            adapter_config_of(CONFIG | {"use_rslora": flag})


def test_files_that_are_missing_broken_or_too_large(folder: Path, places: Places, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="adapter_config.json"):
        read(tmp_path, places)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text(json.dumps(CONFIG))
    (pickled / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(NotFound, match="pickled weights are never loaded"):
        read(pickled, places)
    (pickled / "adapter_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read(pickled, places)
    (pickled / "adapter_config.json").write_text("{")
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read(pickled, places)
    with pytest.raises(FailedPrecondition, match="adapter_memory"):
        read(folder, places, max_file_bytes=1000)
    with pytest.raises(FailedPrecondition, match="max_adapter_rank, 3"):
        read(folder, places, max_rank=3)
