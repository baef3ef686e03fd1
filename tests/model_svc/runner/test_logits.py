"""Changed logits against transformers' logits processors on the same logits."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.sequence import Sequence
from model_svc.runner.logits import LogitsChanger, penalise_all, penalise_few
from tests.fakes.changed_logits import processed, random_sequence, sequence
from tokenwire.errors import Internal

VOCAB = 30
CPU = torch.device("cpu")


def changer(num_slots: int = 8) -> LogitsChanger:
    return LogitsChanger(num_slots, VOCAB, CPU)


def logits_of(num: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(num, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4


def changed_alone(logits: torch.Tensor, asking: Sequence) -> torch.Tensor:
    changed = changer().change(logits[None], [asking])
    assert changed is not None
    assert changed.rows == [0]
    return changed.logits[0]


CASES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.4},
    {"presence_penalty": 0.7},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.3},
    {"frequency_penalty": -1.1},
    {"logit_bias": ((3, 5.0), (0, -100.0), (29, 100.0))},
    {"banned_sequences": ((4,), (7, 8), (2, 7, 8), (1, 7, 9), (7, 7, 10))},
    {"min_tokens": 6, "stop_token_ids": (5, 11)},
    {"allowed_token_ids": (1, 2, 3, 20)},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": ((7, 9.0),)},
    {"allowed_token_ids": (4, 5, 7), "banned_sequences": ((4,),), "logit_bias": ((4, 3.0), (5, -1.0), (6, 1.0))},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_change_is_transformers_own(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits = logits_of(1)[0].to(dtype)
    asking = sequence([1, 2, 5, 9, 2], [7, 1, 7, 2, 7], **case)
    made = changed_alone(logits, asking)
    assert not torch.equal(made, logits.float())
    torch.testing.assert_close(made, processed(logits, asking))


def test_the_prompt_counts_for_the_repetition_penalty_alone() -> None:
    logits = torch.ones(VOCAB)
    penalties = {"presence_penalty": 0.25, "frequency_penalty": 0.125}
    for before in (0, 1, 2):  # what a resumed request brings along is output
        made = changed_alone(logits, sequence([3, 4], [5, 5], before=before, **penalties))
        assert made[[3, 4, 5, 6]].tolist() == [1.0, 1.0, 0.5, 1.0]
        made = changed_alone(logits, sequence([3, 4], [5, 5], before=before, repetition_penalty=2.0))
        assert made[[3, 4, 5, 6]].tolist() == [0.5, 0.5, 0.5, 1.0]


def test_the_whole_and_the_few_are_penalised_alike() -> None:
    generator = torch.Generator().manual_seed(7)
    whole = logits_of(6)
    few = whole.clone()
    counts = torch.randint(-3, 4, (6, VOCAB), generator=generator).clamp(min=0).int()
    seen = (counts > 0) | (torch.rand(6, VOCAB, generator=generator) < 0.3)
    columns = torch.tensor([[1.0, 0.0, 0.0], [1.3, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.5], [2.0, -1.0, 1.0]])
    columns = torch.cat([columns, torch.tensor([[0.5, 2.0, 2.0]])])
    penalise_all(whole, seen, counts, columns)
    penalise_few(few, seen, counts, columns)
    assert torch.equal(whole, few)
    assert torch.equal(whole[0], logits_of(6)[0])
    assert not torch.equal(whole[1:], logits_of(6)[1:])


def test_stop_ids_come_back_after_min_tokens() -> None:
    asking = {"min_tokens": 2, "stop_token_ids": (4,)}
    for output in ([], [6]):
        assert changed_alone(torch.ones(VOCAB), sequence([1], output, **asking))[4] == -torch.inf
    assert changer().change(torch.ones(1, VOCAB), [sequence([1], [6, 6], **asking)]) is None


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_every_row_of_a_mixed_batch_is_as_if_alone(seed: int) -> None:
    """Over a few steps, in which sequences grow, trade slots and leave and come back."""
    rng = random.Random(seed)
    together = changer()
    sequences = [random_sequence(rng, VOCAB, slot) for slot in range(8)]
    for step in range(4):
        present = rng.sample(sequences, rng.randint(1, 8))
        logits = logits_of(len(present), seed + step)
        before = logits.clone()
        changed = together.change(logits, present)
        assert torch.equal(logits, before)
        made = dict(zip(changed.rows, changed.logits, strict=True)) if changed else {}
        for row, asking in enumerate(present):
            wanted = processed(logits[row], asking)
            if row in made:
                torch.testing.assert_close(made[row], wanted)
                assert torch.equal(made[row], changed_alone(logits[row], asking))
            else:
                torch.testing.assert_close(logits[row], wanted)
            asking.token_ids.append(rng.randrange(VOCAB))
        slots = [asking.slot for asking in present]
        rng.shuffle(slots)
        for asking, slot in zip(present, slots, strict=True):
            asking.slot = slot


def test_a_slots_next_owner_finds_nothing_of_the_last() -> None:
    everything = {"repetition_penalty": 3.0, "frequency_penalty": 1.0, "allowed_token_ids": (1, 2)}
    first = sequence([1, 2, 3], [4, 5, 6], **everything)
    second = sequence([7], [8], repetition_penalty=3.0, frequency_penalty=1.0, logit_bias=((2, 1.0),))
    shared, logits = changer(), logits_of(1)
    for asking in (first, second, first, second):
        changed = shared.change(logits, [asking])
        assert changed is not None
        torch.testing.assert_close(changed.logits[0], processed(logits[0], asking))
        asking.token_ids.append(9)


def test_rows_that_ask_for_nothing_now_are_left_alone() -> None:
    idle = [
        sequence([1], [], slot=-1),
        sequence([1, 2], [], slot=-1, banned_sequences=((1, 5), (3, 2, 5))),
        sequence([1], [2], slot=-1, min_tokens=1, stop_token_ids=(4,)),
        sequence([1], [], slot=-1, min_tokens=3),
    ]
    assert changer().change(logits_of(4), idle) is None
    asking = sequence([1], [], slot=3, logit_bias=((0, 1.0),))
    changed = changer().change(logits_of(5), [*idle, asking])
    assert changed is not None
    assert (changed.rows, changed.index.tolist(), len(changed.logits)) == ([4], [4], 1)


def test_ids_beyond_the_vocabulary_are_passed_over() -> None:
    asking = sequence(
        [1, VOCAB + 2], [VOCAB], repetition_penalty=2.0, frequency_penalty=1.0, logit_bias=((VOCAB, 1.0), (3, 1.0)),
        banned_sequences=((VOCAB,), (VOCAB, VOCAB + 1)), allowed_token_ids=(1, 3, VOCAB), min_tokens=9,
        stop_token_ids=(VOCAB,), slot=2,
    )  # fmt: skip
    made = changed_alone(torch.ones(VOCAB), asking)
    assert made.isfinite().nonzero().flatten().tolist() == [1, 3]
    assert made[[1, 3]].tolist() == [0.5, 2.0]


def test_a_tiny_repetition_penalty_does_not_overflow() -> None:
    made = changed_alone(torch.tensor([5.0] * VOCAB), sequence([1], [], repetition_penalty=1e-300))
    assert made.isfinite().all()
    assert made.argmax() == 1


@pytest.mark.parametrize("slots", [(-1, 0), (0, 8), (3, 3)])
def test_running_sequences_need_slots_of_their_own(slots: tuple[int, int]) -> None:
    asking = [sequence([1], [], slot=slot, repetition_penalty=2.0) for slot in slots]
    with pytest.raises(Internal, match="need slots of their own below 8"):
        changer().change(logits_of(2), asking)


def test_state_takes_no_memory_before_it_is_used() -> None:
    idle = changer()
    idle.change(logits_of(1), [sequence([1], [])])
    assert not {"seen", "outputs"} & set(vars(idle._counts))
    assert "table" not in vars(idle._bias)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_what_follows_drafts_is_changed_as_if_they_were_the_sequences_own(seed: int) -> None:
    """Bans, min_tokens, biases; a sequence has a row for each draft, another one stands beside it."""
    rng = random.Random(seed)
    asking = sequence(
        [rng.randrange(6) for _ in range(4)], [rng.randrange(6) for _ in range(rng.randrange(3))], min_tokens=4,
        stop_token_ids=(5, 11), logit_bias=((3, 5.0),),
        banned_sequences=((4,), *((rng.randrange(6), rng.randrange(6)) for _ in range(6)), (1, 2, 3), (3, 2, 1, 0)),
    )  # fmt: skip
    other = sequence([1, 2], [3], logit_bias=((7, 2.0),))
    other.slot = asking.slot + 1
    drafts = [rng.randrange(6) for _ in range(rng.randrange(5))]
    logits = logits_of(len(drafts) + 2, seed)
    changed = changer().change(
        logits, [asking] * (len(drafts) + 1) + [other], [*(drafts[:num] for num in range(len(drafts) + 1)), []]
    )
    assert changed is not None and changed.rows == list(range(len(drafts) + 2))
    for num, made in enumerate(changed.logits[:-1]):
        grown = replace(asking, token_ids=asking.token_ids + drafts[:num])
        torch.testing.assert_close(made, processed(logits[num], grown))
    torch.testing.assert_close(changed.logits[-1], changed_alone(logits[-1], other))


def test_penalties_after_a_draft_are_refused_not_wrong() -> None:
    asking = sequence([1, 2], [3], presence_penalty=1.0)
    with pytest.raises(Internal, match="after a draft"):
        changer().change(logits_of(2), [asking, asking], [[], [4]])
