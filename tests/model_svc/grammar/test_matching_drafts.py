"""Masks after drafts are those of an output that has them, and leave no trace; what is forced must come next."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine.sequence import Sequence
from model_svc.grammar import matching as module
from model_svc.grammar.bench import GrammarBench, StepMasks
from model_svc.grammar.vocabulary import Vocabulary, vocabulary_of
from tests.fakes.constrained import matching_of
from tokenwire.constraints import Constraint, choice, json_schema, regex
from tokenwire.sampling import NEUTRAL, StopParams

STOP = 130
PROMPT = [65, 66]
KEYED = json_schema(
    json.dumps({"type": "object", "properties": {"total": {"enum": [True, 12]}}, "required": ["total"]})
)
CONSTRAINTS = [regex("[ab]+(true|ab){2}c"), choice("ab", "abc", "true"), KEYED, regex("(ab|a)*")]


def letters() -> Vocabulary:
    """As the fixture of this name."""
    tokens = {code: bytes([code]) for code in range(128)} | {128: b"true", 129: b"ab", 130: b"<stop>"}
    return vocabulary_of(tokens, {"<stop>": 130}, 132)


BENCH = GrammarBench(letters(), 2)


def sequence(constraint: Constraint, output: list[int], number: int = 1) -> Sequence:
    return Sequence(
        sequence_id=number, token_ids=[*PROMPT, *output], num_prompt_tokens=len(PROMPT), sampling=NEUTRAL,
        stop=StopParams(max_tokens=100, stop_token_ids=(STOP,)), constraint=matching_of(constraint),
    )  # fmt: skip


def filled(sequences: list[Sequence], drafts: list[list[int]] | None = None) -> StepMasks:
    masks = BENCH.begin(sequences, drafts)
    assert masks is not None
    masks.wait()
    return masks


def allowed(masks: StepMasks, row: int) -> set[int]:
    bits = np.unpackbits(masks.bits[row], count=BENCH.vocabulary.size, bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@pytest.fixture(scope="module", autouse=True)
def without_limits_of_time() -> Iterator[None]:
    """But where a test sets one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_MASK_S", "MAX_DRAFTS_MASK_S", "MAX_FORCED_S"):
            patch.setattr(module, name, float("inf"))
        yield


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_masks_after_drafts_are_those_of_an_output_that_has_them(data: st.DataObject) -> None:
    """Drafts are what may come, but for one here and there; the sequence then goes on with something else."""
    constraint = data.draw(st.sampled_from(CONSTRAINTS))
    asked, drafts = sequence(constraint, []), list[int]()
    for _ in range(data.draw(st.integers(0, 8))):
        may_come = sorted(allowed(filled([sequence(constraint, drafts)]), 0))
        if data.draw(st.integers(0, 5)) == 0:
            drafts.append(data.draw(st.integers(0, 131)))
        elif may_come:
            drafts.append(data.draw(st.sampled_from(may_come)))
    masks = filled([sequence(regex("a"), [], 2), asked], [[97, 97], drafts])
    assert masks.row_of == {2: 0, 1: 3} and len(masks.bits) == 3 + 1 + len(drafts)
    for number in range(1 + len(drafts)):
        reference = filled([sequence(constraint, drafts[:number])])
        assert reference.error_of(1) is None
        assert allowed(masks, 3 + number) == allowed(reference, 0)
        if number == len(drafts) or drafts[number] not in allowed(reference, 0) or drafts[number] == STOP:
            break
    assert asked.constraint is not None and asked.constraint.num_consumed == 0 and masks.error_of(1) is None
    may_come = allowed(masks, 3)
    if may_come - {STOP}:
        token = data.draw(st.sampled_from(sorted(may_come - {STOP})))
        asked.token_ids.append(token)
        assert allowed(filled([asked]), 0) == allowed(filled([sequence(constraint, [token])]), 0)


def test_nothing_follows_a_draft_that_may_not_come_or_with_which_the_text_has_ended() -> None:
    everything = set(range(BENCH.vocabulary.size))
    masks = filled([sequence(regex("abc"), [])], [[97, 120, 98]])
    assert [allowed(masks, row) for row in range(4)] == [{97, 129}, {98}, everything, everything]
    masks = filled([sequence(regex("a"), [])], [[97, STOP, 97]])
    assert [allowed(masks, row) for row in range(4)] == [{97}, {STOP}, set(), set()]


def test_masks_of_drafts_that_take_too_long_are_left_to_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DRAFTS_MASK_S", -1.0)
    asked = sequence(regex("[ab]+"), [])
    masks = filled([asked], [[97, 98]])
    assert allowed(masks, 0) == {97, 98, 129} and allowed(masks, 1) == allowed(masks, 2) == set()
    assert masks.error_of(1) is None


@pytest.mark.parametrize(
    ("constraint", "output", "wanted"),
    [
        (choice("abcdef", "abctrue"), "", [129]),
        (choice("abcdef", "abctrue"), "abct", [ord(c) for c in "rue"]),
        (choice("xtrueab"), "x", [128, 129]),
        (regex("[ab]+"), "", []),
        (KEYED, '{"', [ord(c) for c in "total"]),
        (KEYED, "", []),
    ],
)
def test_forced_is_what_must_follow_without_a_last_token_that_may_be_longer(
    constraint: Constraint, output: str, wanted: list[int]
) -> None:
    asked = sequence(constraint, list(output.encode()))
    assert BENCH.forced(asked, 8) == []  # its matcher is not there yet
    filled([asked])
    assert BENCH.forced(asked, 8) == wanted


def test_what_is_forced_is_found_after_tokens_that_the_matcher_has_not_seen() -> None:
    asked = sequence(KEYED, list(b"{"))
    filled([asked])
    assert asked.constraint is not None and asked.constraint.num_consumed == 1
    asked.token_ids += b'"to'
    assert BENCH.forced(asked, 8) == [ord(c) for c in "tal"]
    assert asked.constraint.num_consumed == 1
    assert allowed(filled([asked]), 0) == {ord("t")}
    asked.token_ids += b"x"
    assert BENCH.forced(asked, 8) == []


def test_of_a_long_text_that_is_forced_only_as_much_is_looked_at_as_is_wanted() -> None:
    text = "true or not" * 1000
    asked = sequence(choice(text), [])
    filled([asked])
    whole = BENCH.forced(asked, 10**6)
    assert whole == BENCH.vocabulary.longest_tokens(text.encode()) and len(whole) == 8 * 1000
    assert [BENCH.forced(asked, number) for number in range(40)] == [whole[:number] for number in range(40)]


def test_what_is_forced_is_not_looked_for_again_where_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, other = sequence(choice("xtrueab"), []), sequence(choice("xtrueab"), [], 2)
    filled([asked, other])
    monkeypatch.setattr(module, "MAX_FORCED_S", -1.0)
    assert BENCH.forced(asked, 8)
    monkeypatch.undo()
    assert BENCH.forced(asked, 8) == [] != BENCH.forced(other, 8)
