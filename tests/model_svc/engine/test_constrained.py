"""Constrained sequences in the engine, with a tiny random model: what they end as, and that others do not notice."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from model_svc.engine.batch import ModelRunner
from model_svc.engine.events import Abort, Inbox
from model_svc.engine.sequence import Sequence
from model_svc.grammar.matching import Matching
from tests.fakes.constrained import matching_of, text_of, tokenizer_of, write_text_model
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.constraints import Constraint, choice, ebnf, regex
from tokenwire.errors import InvalidRequest
from tokenwire.requests import CancelReason, FinishReason
from tokenwire.sampling import NEUTRAL, StopParams

PROMPT = [70, 80, 90]
EOS = 4
CODE = regex(r"[a-f]{3}-[0-9]{2}(x|yy)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return tokenizer_of(folder)


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[ModelRunner]:
    made = tiny_runner_of(str(folder))
    yield made
    made.close()


@pytest.fixture
def loop_of(runner: ModelRunner) -> Callable[..., EngineLoop]:
    """Makes a new engine over the one runner: what another has cached is overwritten."""
    return partial(EngineLoop, runner)


def ask(loop: EngineLoop, constraint: Constraint | None, seed: int = 0, *, eos: bool = True, **fields: Any) -> Sequence:
    """A sequence for `loop`, sampled."""
    stop = StopParams(max_tokens=fields.pop("max_tokens", 60), stop_token_ids=(EOS,) if eos else (), **fields)
    sequence = loop.sequence(PROMPT, 0, stop=stop, sampling=replace(NEUTRAL, temperature=1.0, seed=seed))
    sequence.constraint = matching_of(constraint) if constraint is not None else None
    return sequence


def run(loop: EngineLoop, *sequences: Sequence) -> None:
    loop.engine.take(Inbox(sequences=list(sequences)))
    while loop.engine.has_work:
        loop._step()


def output(sequence: Sequence) -> list[int]:
    made = sequence.token_ids[len(PROMPT) :]
    return made[:-1] if made and made[-1] == EOS else made


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("eos", [True, False])
def test_outputs_keep_to_the_constraint_and_end_where_it_does(
    loop_of: Callable[..., EngineLoop], tokenizer: tokenizers.Tokenizer, eos: bool, overlap: bool
) -> None:
    loop = loop_of(overlap=overlap)
    asked = [ask(loop, CODE, seed, eos=eos) for seed in range(20)]
    run(loop, *asked)
    for sequence in asked:
        terminal = loop.terminals[sequence.sequence_id]
        assert terminal.reason is FinishReason.STOP_TOKEN, terminal
        assert terminal.stop_token_id == (EOS if eos else None)
        assert terminal.usage.completion_tokens == len(output(sequence))
        assert re.fullmatch(CODE.text, text_of(tokenizer, PROMPT, output(sequence)))
    assert len({tuple(output(sequence)) for sequence in asked}) > 10


def test_greedy_penalties_bias_and_top_p_all_draw_within_the_constraint(
    loop_of: Callable[..., EngineLoop], tokenizer: tokenizers.Tokenizer
) -> None:
    loop = loop_of()
    changes: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"top_p": 0.5, "temperature": 2.0}, {"top_k": 3}, {"min_p": 0.3},
        {"logit_bias": ((5, 100.0),)},
        {"repetition_penalty": 1.5, "frequency_penalty": 1.0}, {"banned_sequences": ((68,), (69, 70))},
    ]  # fmt: skip
    asked = [ask(loop, CODE, seed) for seed, _ in enumerate(changes)]
    for sequence, change in zip(asked, changes, strict=True):
        sequence.sampling = replace(sequence.sampling, **change)
        sequence.logprobs = 3
    run(loop, *asked)
    for sequence in asked:
        assert loop.terminals[sequence.sequence_id].reason is FinishReason.STOP_TOKEN
        assert re.fullmatch(CODE.text, text_of(tokenizer, PROMPT, output(sequence)))


@pytest.mark.parametrize("overlap", [False, True])
def test_others_in_the_batch_get_exactly_what_they_get_alone(loop_of: Callable[..., EngineLoop], overlap: bool) -> None:
    loop = loop_of(overlap=overlap)
    alone = []
    for seed in range(8):
        free = ask(loop, None, seed, max_tokens=25)
        run(loop, free)
        alone.append(free.token_ids)
    free_ones = [ask(loop, None, seed, max_tokens=25) for seed in range(8)]
    mixed = [each for seed, free in enumerate(free_ones) for each in (free, ask(loop, CODE, seed))]
    run(loop, *mixed)
    assert [free.token_ids for free in free_ones] == alone


def test_equal_seeds_give_equal_outputs_alone_in_a_batch_preempted_and_resumed(
    runner: ModelRunner, loop_of: Callable[..., EngineLoop]
) -> None:
    loop = loop_of()
    constraint = regex("([a-z]{2,4} ){12}[0-9]{8}")
    whole = [ask(loop, constraint, seed, max_tokens=200) for seed in range(12)]
    run(loop, *whole)
    tight = loop_of(info=replace(runner.info, num_blocks=60, max_context_tokens=240))
    preempted = [ask(tight, constraint, seed, max_tokens=200) for seed in range(12)]
    run(tight, *preempted)
    assert tight.num_preemptions > 0
    assert [each.token_ids for each in preempted] == [each.token_ids for each in whole]
    resumed = []
    for seed, first in enumerate(whole):
        cut = len(PROMPT) + 5 + seed
        again = ask(loop, constraint, seed, max_tokens=200)
        again.token_ids = first.token_ids[:cut]
        again.num_prompt_tokens, again.num_generated_before = cut, cut - len(PROMPT)
        resumed.append(again)
    run(loop_of(), *resumed)
    assert [each.token_ids for each in resumed] == [each.token_ids for each in whole]


def test_an_output_that_is_cut_ends_with_length(loop_of: Callable[..., EngineLoop]) -> None:
    loop = loop_of()
    cut = ask(loop, regex("[a-z]{100}"), max_tokens=3)
    run(loop, cut)
    assert loop.terminals[cut.sequence_id].reason is FinishReason.LENGTH
    assert loop.terminals[cut.sequence_id].usage.completion_tokens == 3


def test_min_tokens_holds_the_end_back_and_what_cannot_go_on_is_a_typed_error(
    loop_of: Callable[..., EngineLoop], tokenizer: tokenizers.Tokenizer
) -> None:
    loop = loop_of()
    long = ask(loop, regex("[a-z]+"), min_tokens=12, max_tokens=30)
    stuck = [ask(loop, choice("no"), eos=eos, min_tokens=9) for eos in (True, False)]
    banned = ask(loop, choice("no"))
    banned.sampling = replace(banned.sampling, allowed_token_ids=(50, 51))
    run(loop, long, *stuck, banned)
    assert loop.terminals[long.sequence_id].usage.completion_tokens >= 12
    assert re.fullmatch("[a-z]+", text_of(tokenizer, PROMPT, output(long)))
    for sequence in (*stuck, banned):
        terminal = loop.terminals[sequence.sequence_id]
        assert terminal.reason is FinishReason.ERROR and isinstance(terminal.error, InvalidRequest)
        assert terminal.error.reason == "NO_TOKEN_LEFT"


def test_an_earlier_output_that_does_not_fit_ends_the_sequence_alone(loop_of: Callable[..., EngineLoop]) -> None:
    loop = loop_of()
    wrong, right = ask(loop, CODE), ask(loop, CODE, 1)
    wrong.token_ids = [*PROMPT, 60, 61]
    wrong.num_prompt_tokens, wrong.num_generated_before = 5, 2
    run(loop, wrong, right)
    error = loop.terminals[wrong.sequence_id].error
    assert error is not None and error.reason == "CONSTRAINT_FAILED"
    assert loop.terminals[right.sequence_id].reason is FinishReason.STOP_TOKEN


def test_a_sequence_waits_for_its_matcher_and_nobody_waits_with_it(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = EngineLoop(runner)
    prepared: list[Sequence] = []
    assert runner.grammars is not None
    real = runner.grammars.prepare
    monkeypatch.setattr(runner.grammars, "prepare", prepared.append)
    slow, free = ask(loop, CODE), ask(loop, None, max_tokens=5)
    loop.engine.take(Inbox(sequences=[slow, free]))
    for _ in range(8):
        loop._step()
    assert free.sequence_id in loop.terminals
    assert slow.token_ids == PROMPT and prepared == [slow]
    idle_s = loop.engine.idle_s()
    assert idle_s is not None and 0 < idle_s < 0.01
    loop.engine.take(Inbox(aborts=[Abort(slow.sequence_id, CancelReason.CLIENT)]))
    loop._step()
    assert loop.terminals[slow.sequence_id].reason is FinishReason.CANCELLED
    monkeypatch.setattr(runner.grammars, "prepare", real)


def test_nothing_of_a_sequence_is_kept_when_it_is_aborted(loop_of: Callable[..., EngineLoop]) -> None:
    loop = loop_of()
    sequence = ask(loop, ebnf('root ::= "a" root'), max_tokens=50)
    loop.engine.take(Inbox(sequences=[sequence]))
    while sequence.num_new_outputs < 3:
        loop._step()
    loop.engine.take(Inbox(aborts=[Abort(sequence.sequence_id, CancelReason.CLIENT)]))
    loop._step()
    assert loop.terminals[sequence.sequence_id].reason is FinishReason.CANCELLED
    assert not loop.engine.scheduler.sequences
    assert isinstance(sequence.constraint, Matching)  # the sequence alone holds it
