"""The engine's side of grammars: whose matcher is made, and whose is not any more."""

import threading
from collections.abc import Callable, Iterator

import pytest

from model_svc.engine.sequence import Sequence, SequenceStatus
from model_svc.grammar import bench as bench_module
from model_svc.grammar.bench import GrammarBench
from model_svc.grammar.vocabulary import Vocabulary
from tests.fakes.constrained import matching_of
from tests.fakes.scheduling import sequence
from tokenwire.constraints import regex


@pytest.fixture
def bench(letters: Vocabulary) -> Iterator[GrammarBench]:
    made = GrammarBench(letters, num_threads=1)
    yield made
    made.close()


@pytest.mark.parametrize(("cores", "num_threads"), [(1, 1), (6, 3), (64, 8)])
def test_masks_are_filled_on_half_the_cores_that_may_be_used(
    letters: Vocabulary, monkeypatch: pytest.MonkeyPatch, cores: int, num_threads: int
) -> None:
    monkeypatch.setattr(bench_module, "usable_cores", lambda: cores)
    made = GrammarBench(letters)
    assert made._num_threads == made._fillers._max_workers == num_threads
    made.close()


def constrained(expression: str) -> Sequence:
    made = sequence([1, 2])
    made.constraint = matching_of(regex(expression))
    return made


def all_made(bench: GrammarBench) -> None:
    """Wait for the thread that makes matchers: it takes them in order."""
    bench._makers.submit(int).result(20)


def test_a_matcher_is_made_and_copied_for_the_next_of_its_grammar(bench: GrammarBench) -> None:
    first, second = constrained("a+"), constrained("a+")
    for each in (first, second):
        bench.prepare(each)
    all_made(bench)
    assert first.is_ready and second.is_ready
    assert first.constraint is not None and second.constraint is not None
    assert first.constraint.matcher is not None and first.constraint.matcher is not second.constraint.matcher
    assert len(bench._kept) == 1


def test_nothing_is_made_for_those_that_have_ended_meanwhile(
    bench: GrammarBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    made: list[str] = []
    real: Callable[..., object] = bench._copy

    def slowly(grammar: str) -> object:
        made.append(grammar)
        begun.set()
        assert go_on.wait(20)
        return real(grammar)

    monkeypatch.setattr(bench, "_copy", slowly)
    sequences = [constrained(expression) for expression in ("a+", "b+", "c+", "d+")]
    for each in sequences:
        bench.prepare(each)
    assert begun.wait(20)
    for each in sequences[:3]:
        each.status = SequenceStatus.FINISHED
    go_on.set()
    all_made(bench)
    grammars = [each.constraint.grammar for each in sequences if each.constraint is not None]
    assert made == [grammars[0], grammars[3]]
    assert [each.is_ready for each in sequences] == [True, False, False, True]
