"""Constraints as the engine gets them, and a tiny random model whose folder says which text its tokens make."""

from pathlib import Path

import tokenizers
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from model_svc.grammar.matching import Matching
from model_svc.grammar.source import grammar_of
from tests.fakes.tokenizers_trained import TRAINED
from tokenwire.constraints import Constraint

NUM_UNUSED = 7
"""Logits that no token of the tokenizer has."""


def matching_of(constraint: Constraint) -> Matching:
    """As admission makes it."""
    return Matching(grammar_of(constraint))


def write_text_model(folder: Path, tokenizer: str = "byte_level_bpe", *, eos: bool = True, seed: int = 0) -> Path:
    """A random Llama with a trained tokenizer, `<|im_end|>` its end of sequence; a context of 2048."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = TRAINED[tokenizer]()
    trained.save(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=trained.get_vocab_size() + NUM_UNUSED, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
        bos_token_id=None, pad_token_id=None, eos_token_id=trained.token_to_id("<|im_end|>") if eos else None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def tokenizer_of(folder: Path) -> tokenizers.Tokenizer:
    """The folder's."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def text_of(tokenizer: tokenizers.Tokenizer, prompt: list[int], output: list[int]) -> str:
    """What the output adds to the prompt's text."""
    before = tokenizer.decode(prompt, skip_special_tokens=False)
    return tokenizer.decode([*prompt, *output], skip_special_tokens=False)[len(before) :]
