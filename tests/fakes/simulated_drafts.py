"""A model of drafting without an engine: sequences that accept with some probability, steps that cost what is said."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from model_svc.engine.draft_lengths import KINDS, MODEL, DraftLengths

LONG_MATCH = KINDS.index("long_match")
IDS = count(1)

Cost = Callable[[int, int, int], float]
"""Milliseconds of a step, by its rows, its rows with drafts, and its drafts."""


@dataclass(frozen=True)
class Kind:
    """What a sequence is like."""

    found: float
    """How often a look-up finds anything."""
    right: float
    """How likely a draft is right after those before it."""
    length: int = 200
    """Tokens until another sequence takes its place."""


def simulate(
    cost: Cost,
    kinds: list[Kind],
    num_steps: int,
    *,
    noise: float = 0.1,
    seed: int = 0,
    longest: int = 8,
    by: int = LONG_MATCH,
    context: int = 0,
    catch_up: float = 0.0,
) -> float:
    """Tokens per second over those without drafts, for one running sequence of each kind.

    `by`: the kind of drafts; a draft model first computes `context` tokens of a new sequence, `catch_up` ms each, and
    then what it has missed.
    """
    rng, lengths = random.Random(seed), DraftLengths(longest)
    running = [[next(IDS), 0, context] for _ in kinds]
    num_tokens = spent = 0.0
    for _ in range(num_steps):
        lengths.begin_step(len(kinds))
        num_rows = num_drafts = accepted = caught_up = 0
        for place, kind in enumerate(kinds):
            number, made, behind = running[place]
            wanted = lengths.most(number, by, behind) if rng.random() < kind.found else 0
            right = 0
            while right < wanted and rng.random() < kind.right:
                right += 1
            lengths.considered(number, wanted)
            if wanted:
                lengths.verified(number, by, wanted, right)
                caught_up += behind if behind > longest + 1 else 0
                num_rows, num_drafts, accepted = num_rows + 1, num_drafts + wanted, accepted + right
            running[place][1] = made + 1 + right
            running[place][2] = 1 if wanted else behind + 1 if by == MODEL else 0
            if running[place][1] >= kind.length:
                lengths.forget(number)
                running[place] = [next(IDS), 0, context]
        held_up = 4.0 if rng.random() < noise / 10 else 1.0
        took = cost(len(kinds), num_rows, num_drafts) * rng.uniform(1 - noise, 1 + noise) + catch_up * caught_up
        lengths.observe(
            len(kinds), num_rows, num_drafts, accepted, took * held_up / 1000, modelled=by == MODEL and num_rows > 0,
            num_caught_up=caught_up,
        )  # fmt: skip
        num_tokens += len(kinds) + accepted
        spent += took
    plain = cost(len(kinds), 0, 0)
    return num_tokens / spent / (len(kinds) / plain)
