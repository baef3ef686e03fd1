"""Adapters as PEFT itself writes them, with random weights that are not zero, and PEFT's own merged models."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def base_model(folder: str | Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def write_adapter(model: str | Path, folder: Path, *, seed: int = 0, size: float = 0.1, **config: Any) -> Path:
    """An adapter of the model in the folder `model`; `config` are LoraConfig's."""
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION + MLP, "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks the model what transformers is about to rename
        adapted = get_peft_model(base_model(model), LoraConfig(**(chosen | config)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=size)
    adapted.save_pretrained(str(folder))
    return folder


def merged_model(model: str | Path, adapter: Path) -> Any:
    """The model with the adapter merged into its weights, by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(base_model(model), str(adapter)).merge_and_unload()


def write_merged(model: str | Path, adapter: Path, folder: Path) -> Path:
    """The same in a folder."""
    merged_model(model, adapter).save_pretrained(folder)
    return folder
