"""Models in the shapes that are measured, with random weights or, where a folder is given, real ones."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from model_svc.model.attention import ATTENTION_NAME
from model_svc.model.loader import LoadedModel, load_model, ready_to_run

COMMON: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

SHAPES: dict[str, Callable[[], Any]] = {
    "llama-3.1-8b": lambda: LlamaConfig(
        **COMMON, vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters=dict(LLAMA3_ROPE), tie_word_embeddings=False,
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        **COMMON, vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
    ),
    "smollm2-135m": lambda: LlamaConfig(
        **COMMON, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=True,
    ),
    "tiny": lambda: LlamaConfig(
        **COMMON, vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a shape's weights come from. Equal sources give equal weights."""

    shape: str
    folder: Path | None
    """A model's folder; None: random weights in the shape."""

    def paged(self, _: Path, device: torch.device, dtype: str) -> LoadedModel:
        """As the engine runs it; in the form of `load_model`, which it stands in for."""
        if self.folder is not None:
            return load_model(self.folder, device, dtype)
        return ready_to_run(self._random(device, dtype, ATTENTION_NAME), device, DTYPES[dtype])

    def plain(self, device: torch.device, dtype: str) -> Any:
        """As `transformers` runs it."""
        if self.folder is not None:
            module = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=DTYPES[dtype], attn_implementation="sdpa", local_files_only=True
            )
            return module.eval().requires_grad_(False).to(device)
        return self._random(device, dtype, "sdpa").eval().requires_grad_(False)

    def _random(self, device: torch.device, dtype: str, attention: str) -> Any:
        torch.manual_seed(0)
        with device:
            return AutoModelForCausalLM.from_config(
                SHAPES[self.shape](), dtype=DTYPES[dtype], attn_implementation=attention
            )


@dataclass(frozen=True)
class Cost:
    """What a model reads and computes."""

    weight_bytes: int
    """Read in each decode step: all weights, but an input embedding that is not the output layer too."""
    kv_bytes_per_token: int
    matmul_params: int
    """Weights that each token is multiplied with; the output layer is left out: prefill needs it for few tokens."""
    attention_width: int
    """Query heads × their size, over all layers."""

    def decode_bytes(self, batch: int, context: int) -> int:
        """Read in one decode step."""
        return self.weight_bytes + batch * context * self.kv_bytes_per_token

    def prefill_flops(self, num_tokens: int, context: int) -> float:
        """Of `num_tokens` tokens in causal sequences of length `context`."""
        return 2.0 * num_tokens * self.matmul_params + 2.0 * num_tokens * context * self.attention_width


def cost_of(model: LoadedModel) -> Cost:
    """The cost of a dense model."""
    module, config = model.module, model.module.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embedding = module.get_input_embeddings().weight
    tied = module.get_output_embeddings().weight is embedding
    num_params = sum(parameter.numel() for parameter in module.parameters())  # a tied one comes once
    output_params = 0 if tied else module.get_output_embeddings().weight.numel()
    return Cost(
        weight_bytes=(num_params - (0 if tied else embedding.numel())) * model.dtype.itemsize,
        kv_bytes_per_token=2 * config.num_hidden_layers * config.num_key_value_heads * head_size * model.dtype.itemsize,
        matmul_params=num_params - embedding.numel() - output_params,
        attention_width=config.num_hidden_layers * config.num_attention_heads * head_size,
    )


def release(device: torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
