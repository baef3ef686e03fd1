"""Drawing after changes: distributions, rows that nothing is left for, and independence of the batch."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from model_svc.runner.logits import LogitsChanger
from model_svc.runner.next_token import NO_TOKEN, next_tokens
from model_svc.runner.sampler import NOT_FINITE
from tests.fakes.changed_logits import processed, random_sequence, sequence
from tests.fakes.distributions import chi_square_fits, filtered

NUM_DRAWS = 20_000
FIRST_SEED = 1_000_000
VOCAB = 40
CPU = torch.device("cpu")

CASES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.6},
    {"logit_bias": ((3, 2.0), (8, -1.0), (20, 4.0))},
    {"allowed_token_ids": (0, 3, 9, 21, 39)},
    {"banned_sequences": ((3,), (7, 12), (9, 30))},
    {"min_tokens": 5, "stop_token_ids": (1, 6)},
    {"temperature": 0.7, "top_k": 12, "repetition_penalty": 1.4},
    {"temperature": 1.4, "top_p": 0.85, "presence_penalty": -1.0, "frequency_penalty": -0.4},
    {"min_p": 0.1, "logit_bias": ((5, 3.0),), "banned_sequences": ((5, 2), (7, 5, 8))},
    {"top_p": 0.9, "allowed_token_ids": tuple(range(0, 40, 3)), "frequency_penalty": 0.5},
    {
        "temperature": 1.3, "top_k": 15, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2,
        "presence_penalty": 0.4, "frequency_penalty": 0.2, "logit_bias": ((2, 1.5), (31, -2.0)),
        "banned_sequences": ((7, 11),), "allowed_token_ids": tuple(range(30)), "min_tokens": 9, "stop_token_ids": (4,),
    },
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frequencies_match_the_exact_distribution(case: dict[str, Any]) -> None:
    """Chi-square at p = 0.001 over 20,000 draws with fixed seeds; and the test can tell this from no change at all."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 1.5
    asking = [
        sequence([3, 8, 8, 20], [5, 20, 5, 7], slot=slot, seed=FIRST_SEED + slot, **({"temperature": 1.0} | case))
        for slot in range(NUM_DRAWS)
    ]
    tokens = next_tokens(logits.expand(NUM_DRAWS, -1), asking, LogitsChanger(NUM_DRAWS, VOCAB, CPU)).tolist()
    wanted = filtered(processed(logits, asking[0]), asking[0].sampling)
    assert chi_square_fits(tokens, wanted)
    assert not chi_square_fits(tokens, filtered(logits, asking[0].sampling))


def test_a_draw_does_not_depend_on_the_rest_of_the_batch() -> None:
    rng = random.Random(4)
    asking = [random_sequence(rng, VOCAB, slot) for slot in range(32)]
    for index, one in enumerate(asking):
        one.sampling = replace(one.sampling, seed=index, temperature=index % 3 / 2, top_p=(1.0, 0.9)[index % 2])
    logits = torch.randn(32, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    together = next_tokens(logits, asking, LogitsChanger(32, VOCAB, CPU)).tolist()
    alone = [
        next_tokens(logits[row : row + 1], [asking[row]], LogitsChanger(32, VOCAB, CPU)).item() for row in range(32)
    ]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_token_left_is_told_from_a_broken_model(temperature: float) -> None:
    logits = torch.zeros(5, VOCAB)
    logits[2, 7] = torch.nan
    logits[3, 7] = torch.nan
    stuck = {"allowed_token_ids": (4, 5), "banned_sequences": ((4,), (1, 5)), "temperature": temperature}
    asking = [
        sequence([1], [], slot=0, temperature=temperature, allowed_token_ids=(9,)),
        sequence([1], [], slot=1, **stuck),
        sequence([1], [], slot=2, **stuck),
        sequence([1], [], slot=3, temperature=temperature),
        sequence([1], [], slot=4, temperature=temperature, min_tokens=1, stop_token_ids=tuple(range(VOCAB - 1))),
    ]
    tokens = next_tokens(logits, asking, LogitsChanger(5, VOCAB, CPU)).tolist()
    assert tokens == [9, NO_TOKEN, NOT_FINITE, NOT_FINITE, VOCAB - 1]


def test_greedy_rows_take_the_best_token_left() -> None:
    logits = torch.arange(VOCAB, dtype=torch.float32).expand(3, -1)
    asking = [
        sequence([1], [], slot=0, banned_sequences=((39,), (1, 38))),
        sequence([39], [], slot=1, repetition_penalty=1.1),
        sequence([1], [], slot=2),
    ]
    assert next_tokens(logits, asking, LogitsChanger(3, VOCAB, CPU)).tolist() == [37, 38, 39]
