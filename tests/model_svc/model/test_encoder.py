"""Encoders: which folders are, what is loaded of them, and what the load-time probe finds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from model_svc.model.encoder import Encoder, is_encoder, load_encoder, packed_row
from model_svc.model.encoder_attention import EncoderBackend, Packed, SdpaEncoderBackend, encoder_backend
from model_svc.model.encoder_probe import probe_encoder
from tests.fakes.tiny_encoders import POSITIONS, SERVED, VOCAB_SIZE, write_encoder, write_masked_bert
from tests.fakes.tiny_models import write_model
from tokenwire.errors import FailedPrecondition, NotFound

CPU = torch.device("cpu")
each_encoder = pytest.mark.parametrize("name", SERVED)


def load(folder: Path, dtype: str = "float32") -> Encoder:
    return load_encoder(folder, CPU, dtype)


@torch.inference_mode()
def hidden_of(model: Encoder, sequences: list[list[int]], backend: EncoderBackend | None = None) -> list[Tensor]:
    lengths = [len(ids) for ids in sequences]
    positions, packed = packed_row(lengths, CPU)
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    return list(torch.split(model.hidden(ids, positions, packed, backend or SdpaEncoderBackend()), lengths))


def some_sequences(*lengths: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(2, VOCAB_SIZE, (length,), generator=random).tolist() for length in lengths]


@each_encoder
def test_packed_sequences_are_what_transformers_makes_of_each(tmp_path: Path, name: str) -> None:
    """transformers is left to find positions and token types by itself."""
    model = load(write_encoder(tmp_path, name))
    assert (model.vocab_size, model.hidden_size, model.num_layers, model.max_tokens) == (99, 32, 2, POSITIONS)
    reference = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    sequences = some_sequences(1, 3, 7, 7, 7, 20, POSITIONS)
    for ids, found in zip(sequences, hidden_of(model, sequences), strict=True):
        with torch.inference_mode():
            wanted = reference(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@each_encoder
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_lets_them_pass(tmp_path: Path, name: str, dtype: str) -> None:
    probe_encoder(load(write_encoder(tmp_path, name), dtype), SdpaEncoderBackend(), POSITIONS)


def test_a_head_is_left_out_and_a_missing_pooler_is_none(tmp_path: Path) -> None:
    model = load(write_masked_bert(tmp_path))
    assert type(model.module).__name__ == "BertModel" and model.module.pooler is None
    probe_encoder(model, SdpaEncoderBackend(), POSITIONS)


class Mixing(SdpaEncoderBackend):
    """Attends over the whole row."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float | None) -> Tensor:
        whole = Packed((query.shape[2],), packed.starts)
        return super().attend(query, key, value, whole, scale)


class Scaled(SdpaEncoderBackend):
    """Takes another scale."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float | None) -> Tensor:
        return super().attend(query, key, value, packed, 2 * (scale or 1.0))


@pytest.mark.parametrize(
    ("backend", "said"), [(Mixing(), "changes with the tokens packed beside it"), (Scaled(), "eager attention by")]
)
def test_the_probe_finds_wrong_attention(tmp_path: Path, backend: EncoderBackend, said: str) -> None:
    model = load(write_encoder(tmp_path, "bert"))
    with pytest.raises(FailedPrecondition, match=said) as caught:
        probe_encoder(model, backend, POSITIONS)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_the_probe_finds_wrong_positions_and_attention_that_is_not_called(tmp_path: Path) -> None:
    model = load(write_encoder(tmp_path, "roberta"))
    with pytest.raises(FailedPrecondition, match="eager attention by"):
        probe_encoder(replace(model, first_position=1), SdpaEncoderBackend(), POSITIONS)
    with pytest.raises(FailedPrecondition, match="2 calls of attention in 3 layers"):
        probe_encoder(replace(model, num_layers=3), SdpaEncoderBackend(), POSITIONS)


def test_the_backend_of_a_cpu() -> None:
    assert encoder_backend(CPU, torch.bfloat16).name == "sdpa"


@pytest.mark.parametrize("name", ["electra", "modernbert"])
def test_other_encoders_are_refused_by_name(tmp_path: Path, name: str) -> None:
    assert is_encoder(write_encoder(tmp_path, name))
    with pytest.raises(FailedPrecondition, match=f"encoders of type {name!r} are not; those of bert, .*") as caught:
        load(tmp_path)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_which_folders_are_encoders(tmp_path: Path) -> None:
    assert is_encoder(write_encoder(tmp_path / "bert", "bert"))
    assert not is_encoder(write_model(tmp_path / "llama", "llama"))
    assert not is_encoder(tmp_path / "nothing")
    config = tmp_path / "bert" / "config.json"
    values: dict[str, Any] = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"is_decoder": True}))
    assert not is_encoder(tmp_path / "bert")
    config.write_text("[]")
    assert not is_encoder(tmp_path / "bert")


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load(tmp_path / "nothing")
    write_encoder(tmp_path / "bert", "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FailedPrecondition, match="cannot be loaded"):
        load(tmp_path / "bert")
    weights.write_bytes(whole)
    config = tmp_path / "bert" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(FailedPrecondition, match="missing_keys"):
        load(tmp_path / "bert")
