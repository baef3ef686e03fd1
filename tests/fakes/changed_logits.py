"""Sequences that ask for changes to their logits, and what transformers' processors make of the same logits."""

import random
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from model_svc.engine.sequence import Sequence
from tests.fakes.step_loop import SEQUENCE_IDS
from tokenwire.sampling import NEUTRAL, StopParams


def sequence(
    prompt: list[int],
    output: list[int],
    *,
    slot: int = 0,
    before: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
    **sampling: Any,
) -> Sequence:
    """A sequence with `output`, of which the first `before` tokens came along with the request."""
    return Sequence(
        sequence_id=next(SEQUENCE_IDS),
        token_ids=prompt + output,
        num_prompt_tokens=len(prompt) + before,
        num_generated_before=before,
        sampling=replace(NEUTRAL, **({"seed": 1} | sampling)),
        stop=StopParams(max_tokens=100, stop_token_ids=stop_token_ids, min_tokens=min_tokens),
        slot=slot,
    )


def processed(logits: torch.Tensor, asking: Sequence) -> torch.Tensor:
    """`logits` [V] as changed by transformers, and by the formulas of what transformers does not have."""
    params, stop = asking.sampling, asking.stop
    ids, scores = torch.tensor([asking.token_ids]), logits[None].float()
    prompt_length = asking.num_original_prompt_tokens
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    count = torch.bincount(ids[0, prompt_length:], minlength=len(logits))
    scores = scores - params.presence_penalty * (count > 0).float() - params.frequency_penalty * count
    if params.logit_bias:
        scores = SequenceBiasLogitsProcessor({(token,): value for token, value in params.logit_bias})(ids, scores)
    if params.banned_sequences:
        # Some releases of transformers pass over sequences that are longer than the text.
        longest = torch.full((1, max(map(len, params.banned_sequences))), -1)
        words = [list(banned) for banned in params.banned_sequences]
        scores = NoBadWordsLogitsProcessor(words)(torch.cat((longest, ids), 1), scores)
    if stop.min_tokens:
        scores = MinNewTokensLengthLogitsProcessor(prompt_length, stop.min_tokens, list(stop.stop_token_ids))(
            ids, scores
        )
    if params.allowed_token_ids:
        kept = torch.full_like(scores, -torch.inf)
        kept[0, list(params.allowed_token_ids)] = scores[0, list(params.allowed_token_ids)]
        scores = kept
    return scores[0]


def random_sequence(rng: random.Random, vocab_size: int, slot: int) -> Sequence:
    """A sequence that asks for anything, everything or nothing, from a few tokens that often repeat."""

    def tokens(most: int, fewest: int = 0) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randint(fewest, most))]

    def maybe(name: str, value: Any) -> dict[str, Any]:
        return {name: value} if rng.random() < 0.35 else {}

    prompt, output = tokens(12, 1), tokens(12)
    tail = (prompt + output)[-3:]
    banned = [tuple(tokens(3, 1)), (*tail, rng.randrange(vocab_size)), (*tail[-1:], rng.randrange(vocab_size))]
    biased = rng.sample(range(vocab_size), 4)
    return sequence(
        prompt, output, slot=slot, before=rng.randint(0, len(output)),
        **maybe("repetition_penalty", rng.choice([0.5, 1.3, 20.0])),
        **maybe("presence_penalty", rng.uniform(-2, 2)),
        **maybe("frequency_penalty", rng.uniform(-2, 2)),
        **maybe("logit_bias", tuple((token, rng.uniform(-100, 100)) for token in biased)),
        **maybe("banned_sequences", tuple(banned)),
        **maybe("allowed_token_ids", tuple(rng.sample(range(vocab_size), 9))),
        **({"min_tokens": rng.randint(1, 12), "stop_token_ids": (1, 2)} if rng.random() < 0.35 else {}),
    )  # fmt: skip
