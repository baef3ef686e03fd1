"""Tiny random models of real architectures, written as ordinary model folders."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    NemotronConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
    StableLmConfig,
)

VOCAB_SIZE = 99
CONTEXT = 128
WINDOW = 8

BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,  # large enough that the likeliest token is rarely a near-tie
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
}
MULTI_HEAD = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
GRANITE = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 0.5,
}  # fmt: skip
BLANK = {"vocab_size": VOCAB_SIZE, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**BASE),
    "llama_tied": lambda: LlamaConfig(**BASE, tie_word_embeddings=True),
    "llama3_rope": lambda: LlamaConfig(
        **BASE,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
    "llama_dynamic_rope": lambda: LlamaConfig(
        **BASE, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "qwen2": lambda: Qwen2Config(**BASE),
    "qwen2_window": lambda: Qwen2Config(
        **BASE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**BASE, head_dim=16),
    "qwen3_yarn": lambda: Qwen3Config(
        **BASE, head_dim=16,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32
        },
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **BASE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "gemma2": lambda: Gemma2Config(
        **BASE, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16, attn_logit_softcapping=1.0
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **BASE, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=LOCAL_AND_GLOBAL,
        final_logit_softcapping=20.0,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "gemma3_multimodal": lambda: Gemma3Config(
        text_config=CONFIGS["gemma3"]().to_dict(), mm_tokens_per_image=4, image_token_index=98, boi_token_index=97,
        eoi_token_index=96,
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
    ),
    "mistral": lambda: MistralConfig(**BASE, sliding_window=WINDOW),
    "phi3": lambda: Phi3Config(**BASE),
    "phi3_longrope": lambda: Phi3Config(**BASE, original_max_position_embeddings=32, rope_parameters=dict(LONGROPE)),
    "olmo2": lambda: Olmo2Config(**BASE),
    "granite": lambda: GraniteConfig(**BASE, **GRANITE),
    "granite_moe": lambda: GraniteMoeConfig(**BASE, **GRANITE, num_local_experts=4, num_experts_per_tok=2),
    "gpt_neox": lambda: GPTNeoXConfig(**MULTI_HEAD, use_parallel_residual=True, rope_parameters=dict(PARTIAL_ROPE)),
    "gpt_neox_sequential": lambda: GPTNeoXConfig(
        **MULTI_HEAD, use_parallel_residual=False, rope_parameters=dict(PARTIAL_ROPE)
    ),
    "stablelm": lambda: StableLmConfig(**BASE, qk_layernorm=True, rope_parameters=dict(PARTIAL_ROPE)),
    "stablelm_parallel": lambda: StableLmConfig(
        **BASE, use_parallel_residual=True, use_qkv_bias=True, rope_parameters=dict(PARTIAL_ROPE)
    ),
    "nemotron": lambda: NemotronConfig(**BASE, rope_parameters=dict(PARTIAL_ROPE)),
    "cohere": lambda: CohereConfig(**BASE, logit_scale=0.5, use_qk_norm=True),
    "cohere2": lambda: Cohere2Config(
        **BASE, logit_scale=0.5, sliding_window=WINDOW, layer_types=LOCAL_AND_GLOBAL  # the global one has no rope
    ),
    "smollm3": lambda: SmolLM3Config(**BASE, no_rope_layers=[1, 0]),
    "mixtral": lambda: MixtralConfig(**BASE, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": lambda: OlmoeConfig(**BASE, num_experts=4, num_experts_per_tok=2, clip_qkv=1.0),
    "gpt_oss": lambda: GptOssConfig(
        **BASE, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **(BASE | {"num_key_value_heads": 4}), n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=24, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=12, first_k_dense_replace=1,
    ),
    "llama4": lambda: Llama4TextConfig(
        **BASE, head_dim=16, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=16,
        no_rope_layers=[1, 0],
    ),
    "bloom": lambda: BloomConfig(**BLANK, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: FalconConfig(**BLANK, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "mpt": lambda: MptConfig(**BLANK, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **BLANK, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, lru_width=32,
        attention_window_size=16,
    ),
    "gptj": lambda: GPTJConfig(**BLANK, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
    "mamba": lambda: MambaConfig(**BLANK, hidden_size=32, num_hidden_layers=2, state_size=8),
    "jamba": lambda: JambaConfig(
        **BASE, attn_layer_period=2, attn_layer_offset=1, num_experts=2, use_mamba_kernels=False, mamba_d_state=8
    ),
    "falcon_h1": lambda: FalconH1Config(
        **BASE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
    ),
}  # fmt: skip


def write_model(folder: Path, name: str, *, seed: int = 0) -> Path:
    """Make the model called `name` with random fp32 weights and save it to `folder`."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases, all ones and zeros until now
            parameter.data += 0.2 * torch.randn_like(parameter)
    if name == "gpt_oss":
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    model.save_pretrained(folder)
    return folder
