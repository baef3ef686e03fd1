"""Catches what a causal model's head is given: the hidden states behind the last norm, while a forward pass runs.

`transformers` gives them as the first value of the model inside the one with the head (`base_model`), and computes
logits of them in ways of each model's own; so they are caught on their way, and the pass stays one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def last_hidden_states(module: Any) -> Iterator[list[Tensor]]:
    """A list to which each pass of `module` in the block adds its last hidden states [batch, tokens, hidden_size]."""
    caught: list[Tensor] = []

    def catch(_: Any, inputs: Any, output: Any) -> None:
        caught.append(output[0])

    handle = module.base_model.register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()
