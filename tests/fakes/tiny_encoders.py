"""Tiny random encoders of real architectures, written as ordinary model folders."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

VOCAB_SIZE = 99
POSITIONS = 48
BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
PADDED = BASE | {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}

CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**BASE, max_position_embeddings=POSITIONS),
    "roberta": lambda: RobertaConfig(**PADDED),
    "xlm_roberta": lambda: XLMRobertaConfig(**PADDED),
    "camembert": lambda: CamembertConfig(**PADDED),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB_SIZE, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=POSITIONS,
        initializer_range=0.2,
    ),
    "electra": lambda: ElectraConfig(**BASE, embedding_size=32, max_position_embeddings=POSITIONS),
    "modernbert": lambda: ModernBertConfig(**BASE, max_position_embeddings=POSITIONS),
}  # fmt: skip
SERVED = ("bert", "roberta", "xlm_roberta", "camembert", "distilbert")


def write_encoder(folder: Path, name: str, *, pooling: str = "", max_tokens: int = 0, seed: int = 0) -> Path:
    """Make the encoder called `name` with random fp32 weights and save it to `folder`.

    `pooling`: what a modules.json beside it says, as the end of `pooling_mode_…`; `max_tokens`: its longest input.
    """
    torch.manual_seed(seed)
    AutoModel.from_config(CONFIGS[name]()).save_pretrained(folder)
    if pooling:
        write_modules(folder, "Transformer", "Pooling", "Normalize", **{f"pooling_mode_{pooling}": True})
    if max_tokens:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    return folder


def write_masked_bert(folder: Path) -> Path:
    """A BERT with the head it was trained with, and so without a pooler, its weights behind a prefix."""
    torch.manual_seed(0)
    BertForMaskedLM(CONFIGS["bert"]()).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json with as many words as the models have ids: a folder without one is not complete."""
    words = {f"w{i}": i for i in range(VOCAB_SIZE)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))


def write_modules(folder: Path, *kinds: str, **pooling: Any) -> None:
    """A modules.json with these modules, and what the pooling's config.json says."""
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for index, kind in enumerate(kinds):
        if kind == "Pooling":
            (folder / f"{index}_Pooling").mkdir(exist_ok=True)
            (folder / f"{index}_Pooling" / "config.json").write_text(json.dumps(pooling))
