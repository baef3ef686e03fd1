"""What transformers itself says of a model, one prompt at a time."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Reference:
    """transformers' greedy generate, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(self, ids: list[int], max_tokens: int, **options: Any) -> list[int]:
        """The new tokens, the end-of-sequence token left out; `options` as for transformers' generate."""
        with torch.inference_mode():
            inputs = torch.tensor([ids])
            output = self.model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_tokens, do_sample=False, **options
            )
        tokens = output[0, len(ids) :].tolist()
        return tokens[:-1] if tokens[-1] == self.tokenizer.eos_token_id else tokens

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), vocab_size]: log-probabilities of what follows each token."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1)
