import pickle

import numpy as np
import pytest

from model_svc.engine.sequence import PENDING, Sequence
from model_svc.grammar import matching as module
from model_svc.grammar.bench import NUM_KEPT, GrammarBench
from model_svc.grammar.library import MAX_SLOW_MASKS
from model_svc.grammar.matching import Matching, Outcome
from model_svc.grammar.vocabulary import Vocabulary
from tests.fakes.constrained import matching_of
from tokenwire.constraints import Constraint, choice, json_schema, regex
from tokenwire.errors import Internal
from tokenwire.sampling import NEUTRAL, StopParams

STOP = 130
PROMPT = [65, 66]


def sequence(
    constraint: Constraint, output: str = "", *, stop_ids: tuple[int, ...] = (STOP,), before: int = 0, number: int = 1
) -> Sequence:
    """After `output`, of which the first `before` characters came along with the request."""
    return Sequence(
        sequence_id=number,
        token_ids=[*PROMPT, *output.encode()],
        num_prompt_tokens=len(PROMPT) + before,
        num_generated_before=before,
        sampling=NEUTRAL,
        stop=StopParams(max_tokens=100, stop_token_ids=stop_ids),
        constraint=matching_of(constraint),
    )


@pytest.fixture
def bench(letters: Vocabulary) -> GrammarBench:
    return GrammarBench(letters, 2)


def allowed(bench: GrammarBench, *sequences: Sequence) -> list[set[int]]:
    """The tokens that may come next, of each."""
    masks = bench.begin(sequences)
    assert masks is not None
    masks.wait()
    rows = np.unpackbits(masks.bits, axis=1, count=bench.vocabulary.size, bitorder="little")
    return [set(np.flatnonzero(rows[masks.row_of[each.sequence_id]]).tolist()) for each in sequences]


def ids(text: str) -> set[int]:
    return set(text.encode())


def test_tokens_of_one_and_of_several_characters_may_come_where_the_grammar_goes_on(bench: GrammarBench) -> None:
    assert allowed(bench, sequence(regex("[ab]c|true"))) == [ids("abt") | {128}]
    assert allowed(bench, sequence(regex("[ab]+"), "a", number=2)) == [ids("ab") | {129, STOP}]
    assert allowed(bench, sequence(choice("ab", "abc"), "ab", number=3)) == [ids("c") | {STOP}]


def test_stop_ids_may_come_exactly_where_the_text_may_end_unless_they_are_text(bench: GrammarBench) -> None:
    comma = ord(",")
    assert allowed(bench, sequence(regex("a,b"), "a", stop_ids=(STOP, comma))) == [{comma}]
    assert allowed(bench, sequence(regex("a,b"), "", stop_ids=(STOP, comma), number=2)) == [ids("a")]
    assert allowed(bench, sequence(regex("a,b"), "a,b", stop_ids=(STOP, comma, 9999), number=3)) == [{STOP, comma}]


def test_a_text_that_is_whole_is_complete_where_no_stop_id_could_say_so(bench: GrammarBench) -> None:
    for stop_ids, outcome in (((STOP,), Outcome.TOKENS), ((), Outcome.COMPLETE), ((9999,), Outcome.COMPLETE)):
        masks = bench.begin([sequence(regex("ab?"), "ab", stop_ids=stop_ids)])
        assert masks is not None
        masks.wait()
        assert masks.outcomes == [outcome]
        assert masks.is_complete(1) is (outcome is Outcome.COMPLETE)
        assert masks.error_of(1) is None
    assert allowed(bench, sequence(regex("ab?"), "a", stop_ids=())) == [ids("b")]


def test_state_is_a_function_of_the_output_wherever_it_was_made(bench: GrammarBench) -> None:
    constraint = json_schema('{"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"]}')
    text = '{"ab":true}'
    stepwise = sequence(constraint)
    for length in range(len(text) + 1):
        stepwise.token_ids = [*PROMPT, *text[:length].encode()]
        resumed = sequence(constraint, text[:length], before=length // 2, number=2)
        prepared = sequence(constraint, text[:length], before=length, number=3)
        bench.prepare(prepared)
        while not prepared.is_ready:
            pass
        found = allowed(bench, stepwise, resumed, prepared)
        assert found[0] == found[1] == found[2] != set(), text[:length]
        assert stepwise.constraint is not None and stepwise.constraint.num_consumed == length


def test_an_output_that_does_not_fit_is_an_error_and_so_is_one_that_became_too_complex(
    bench: GrammarBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, right = sequence(regex("abc"), "ax"), sequence(regex("abc"), "ab", number=2)
    masks = bench.begin([wrong, right])
    assert masks is not None
    masks.wait()
    error = masks.error_of(1)
    assert error is not None and "does not fit" in error.message and error.reason == "CONSTRAINT_FAILED"
    assert error.violations[0].field == "options.constraint"
    assert masks.error_of(2) is None
    monkeypatch.setattr(module, "MAX_MASK_S", -1.0)
    for num_slow in range(1, MAX_SLOW_MASKS + 2):
        masks = bench.begin([right])
        assert masks is not None
        masks.wait()
        assert (masks.error_of(2) is not None) == (num_slow > MAX_SLOW_MASKS)


def test_it_travels_as_its_grammar_and_a_pending_token_is_a_bug(bench: GrammarBench) -> None:
    asking = sequence(regex("ab"), "a")
    allowed(bench, asking)
    assert asking.constraint is not None
    copied = pickle.loads(pickle.dumps(asking.constraint))
    assert isinstance(copied, Matching)
    assert (copied.grammar, copied.num_consumed, copied.matcher) == (asking.constraint.grammar, 0, None)
    assert not copied.is_ready
    asking.token_ids.append(PENDING)
    with pytest.raises(Internal, match="last token"):
        bench.begin([asking])


def test_free_sequences_have_no_mask_and_matchers_are_kept_for_as_many_grammars_as_is_said(
    bench: GrammarBench,
) -> None:
    free = Sequence(9, [1], 1, NEUTRAL, StopParams())
    assert bench.begin([free]) is None
    masks = bench.begin([free, sequence(regex("a"))])
    assert masks is not None and set(masks.row_of) == {1}
    masks.wait()
    for number in range(NUM_KEPT + 10):
        allowed(bench, sequence(regex(f"a{{{number + 1}}}"), number=number))
    assert len(bench._kept) == NUM_KEPT


def test_many_rows_at_once_get_what_each_gets_alone(letters: Vocabulary) -> None:
    one, several = GrammarBench(letters, 1), GrammarBench(letters, 4)
    cases = [sequence(regex(f"[a-{chr(98 + n % 20)}]{{1,9}}"), "ab"[: n % 3], number=n + 1) for n in range(50)]
    alone = [allowed(one, case)[0] for case in cases]
    for case in cases:
        assert case.constraint is not None
        case.constraint = Matching(case.constraint.grammar)
    for _ in range(3):
        assert allowed(several, *cases) == alone
