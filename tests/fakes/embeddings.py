"""Sequences that ask for an embedding, and what `transformers`' own last hidden states pool to."""

from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from model_svc.engine.sequence import Sequence
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.step_loop import GREEDY
from tokenwire.embeddings import EmbeddingOptions, Pooling
from tokenwire.requests import FinishReason
from tokenwire.sampling import StopParams

Hidden = Callable[[list[int]], np.ndarray]
SEQUENCE_IDS = count(10**7)
OPTIONS = (
    EmbeddingOptions(Pooling.MEAN), EmbeddingOptions(Pooling.LAST), EmbeddingOptions(Pooling.CLS),
    EmbeddingOptions(Pooling.MEAN, normalize=False), EmbeddingOptions(Pooling.LAST, dimensions=5),
    EmbeddingOptions(Pooling.MEAN, dimensions=5),
)  # fmt: skip


def embedded(prompt: list[int], options: EmbeddingOptions) -> Sequence:
    """A sequence that ends with a vector."""
    number = next(SEQUENCE_IDS)
    return Sequence(
        sequence_id=number, token_ids=list(prompt), num_prompt_tokens=len(prompt), sampling=GREEDY,
        stop=StopParams(max_tokens=0), arrival_s=float(number), embedding=options,
    )  # fmt: skip


def of_all_kinds(prompts: Iterable[list[int]]) -> list[Sequence]:
    """One for each prompt, with the options in turn."""
    return [embedded(prompt, OPTIONS[index % len(OPTIONS)]) for index, prompt in enumerate(prompts)]


def hidden_states_of(folder: str | Path) -> Hidden:
    """What the model in `folder` gives for tokens, [n, size] in fp32 on the CPU."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def hidden(token_ids: list[int]) -> np.ndarray:
        return np.asarray(model(input_ids=torch.tensor([token_ids])).last_hidden_state[0].numpy())

    return hidden


def wanted(hidden: np.ndarray, options: EmbeddingOptions) -> np.ndarray:
    """The vector that hidden states [n, size] pool to."""
    of = {Pooling.MEAN: hidden.mean(0), Pooling.LAST: hidden[-1], Pooling.CLS: hidden[0]}
    assert options.pooling is not None
    vector = of[options.pooling][: options.dimensions]
    return vector / np.linalg.norm(vector) if options.normalize else vector


def check_vectors(sequences: list[Sequence], hidden: Hidden, loop: EngineLoop, tolerance: float = 1e-5) -> None:
    """Each sequence ended with its vector, no number further off than `tolerance` of the largest."""
    for sequence in sequences:
        assert sequence.embedding is not None
        terminal = loop.terminals[sequence.sequence_id]
        assert terminal.reason is FinishReason.LENGTH and terminal.vector is not None
        assert terminal.usage.completion_tokens == 0 and terminal.usage.prompt_tokens == sequence.num_prompt_tokens
        found = np.frombuffer(terminal.vector, dtype=np.float32)
        expected = wanted(hidden(sequence.token_ids), sequence.embedding)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))
