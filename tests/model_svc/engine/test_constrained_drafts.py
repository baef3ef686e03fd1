"""Drafts of constrained sequences, forced and looked up: the tokens are those without, in fewer steps."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_svc.engine.batch import ModelRunner
from model_svc.engine.drafting import UNDRAFTED, DraftCounts, DraftLimits
from model_svc.engine.sequence import Sequence
from model_svc.grammar import matching
from tests.fakes.constrained import matching_of, text_of, tokenizer_of, write_text_model
from tests.fakes.drafts import RecordedLookup
from tests.fakes.engine_loop import NO_DRAFTS, EngineLoop
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.constraints import Constraint, choice, ebnf, json_schema, regex
from tokenwire.errors import InvalidRequest
from tokenwire.requests import FinishReason
from tokenwire.sampling import NEUTRAL, StopParams

EOS = 4
PROMPTS = [[70, 80, 90], [71, 60, 71, 60, 71, 60, 71], [99, 98]]
FORCED_ONLY = DraftLimits(max_drafts=6, by_default=True, by_lookup=False, adaptive=False)
WITH_LOOKUP = DraftLimits(max_drafts=6, by_default=True, adaptive=False)
ADAPTIVE = DraftLimits(max_drafts=8, by_default=True)
LIMITS = {"forced": FORCED_ONLY, "lookup": WITH_LOOKUP, "adaptive": ADAPTIVE}
KEYS = ["customer_identifier_of_the_order", "shipping_address_and_postal_code", "is_it_a_present"]


def keyed(*kinds: dict[str, Any]) -> Constraint:
    properties = dict(zip(KEYS, kinds, strict=False))
    return json_schema(json.dumps({"type": "object", "properties": properties, "required": list(properties)}))


CASES = [
    keyed({"type": "integer", "minimum": 0, "maximum": 99}, {"type": "boolean"}),
    keyed({"enum": ["the first of them", "the second of them"]}, {"type": "null"}, {"type": "boolean"}),
    choice("an answer that goes on for long", "another one that goes on for long"),
    regex("(the same over and over; ){3}[0-9]{2,5}"),
    ebnf('root ::= "fixed beginning: " ("x" | "yy")* " fixed end"'),
]


@pytest.fixture(scope="module", autouse=True)
def without_limits_of_time() -> Iterator[None]:
    """A busy machine may exceed one in one of two runs that are compared."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_MASK_S", "MAX_DRAFTS_MASK_S", "MAX_FORCED_S"):
            patch.setattr(matching, name, float("inf"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[ModelRunner]:
    made = tiny_runner_of(str(folder))
    yield made
    made.close()


def asked(
    loop: EngineLoop, constraints: list[Constraint | None], *, seed: int | None = 0, eos: bool = True, **fields: Any
) -> list[Sequence]:
    """A sequence for each, greedy without a seed; for None one that is free."""
    made = []
    for number, constraint in enumerate(constraints):
        sampling = replace(NEUTRAL, temperature=0.0 if seed is None else 1.0, seed=(seed or 0) + number)
        stop = StopParams(max_tokens=fields.get("max_tokens", 60), stop_token_ids=(EOS,) if eos else ())
        prompt = PROMPTS[number % len(PROMPTS)]
        made.append(loop.sequence(prompt, 0, stop=stop, sampling=sampling))
        made[-1].constraint = matching_of(constraint) if constraint is not None else None
        made[-1].speculation, made[-1].logprobs = fields.get("speculation"), fields.get("logprobs")
    return made


def outputs(loop: EngineLoop, sequences: list[Sequence]) -> list[tuple[list[int], FinishReason, Any]]:
    """Serve them; what each came to."""
    loop.serve(sequences, staggered=True)
    terminals = [loop.terminals[each.sequence_id] for each in sequences]
    return [
        (each.token_ids[each.num_prompt_tokens :], terminal.reason, terminal.usage)
        for each, terminal in zip(sequences, terminals, strict=True)
    ]


def drafts_of(loop: EngineLoop) -> DraftCounts:
    return loop.engine.scheduler.drafting.counts()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("seed", [None, 0, 50])
def test_tokens_are_those_without_drafts_in_a_mixed_batch(
    runner: ModelRunner, limits: DraftLimits, seed: int | None, overlap: bool
) -> None:
    constraints = [*CASES, None, *CASES, None]
    plain, drafted = EngineLoop(runner), EngineLoop(runner, drafts=limits, overlap=overlap)
    wanted = outputs(plain, asked(plain, constraints, seed=seed, logprobs=1))
    assert outputs(drafted, sequences := asked(drafted, constraints, seed=seed, logprobs=1)) == wanted
    assert limits is ADAPTIVE or drafts_of(drafted).num_forced_accepted > 0
    for sequence in sequences:
        given_out = drafted.runner.logprobs[sequence.sequence_id]
        made = sequence.token_ids[sequence.num_prompt_tokens :]
        assert [entry.token_id for entry in given_out][: len(made)] == made


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*CASES, None]), min_size=1, max_size=8), st.integers(0, 10**6), st.booleans(),
    st.integers(1, 8), st.sampled_from([40, 60, 200]),
)  # fmt: skip
def test_any_drafts_right_wrong_or_refused_change_nothing(
    runner: ModelRunner, constraints: list[Constraint | None], seed: int, eos: bool, length: int, num_blocks: int
) -> None:
    """Drafts of what comes, some of them replaced by any token, with few blocks for them."""
    plain = EngineLoop(runner)
    sequences = asked(plain, constraints, seed=seed, eos=eos)
    for number, sequence in enumerate(sequences):
        sequence.choice = number
    wanted = outputs(plain, sequences)
    known = {
        (tuple(each.token_ids[: each.num_prompt_tokens]), each.choice): each.token_ids[each.num_prompt_tokens :]
        for each in sequences
    }
    info = replace(runner.info, num_blocks=num_blocks, max_context_tokens=100)
    limits = DraftLimits(max_drafts=length, by_default=True, adaptive=False)
    drafted = EngineLoop(runner, drafts=limits, info=info)
    drafted.engine.scheduler.drafting.lookup = RecordedLookup(known, seed, runner.info.vocab_size)
    if seed % 2:
        drafted.engine.scheduler.drafting.forcing = None
    again = asked(drafted, constraints, seed=seed, eos=eos)
    for number, sequence in enumerate(again):
        sequence.choice = number
    assert [made[0] for made in outputs(drafted, again)] == [made[0] for made in wanted]
    assert [drafted.terminals[each.sequence_id].reason for each in again] == [made[1] for made in wanted]


def test_long_fixed_parts_take_fewer_steps_than_tokens(runner: ModelRunner, folder: Path) -> None:
    """The likelier a model makes the longest tokens the more: here what must come is what it would choose."""
    tokenizer = tokenizer_of(folder)
    text = json.dumps(dict.fromkeys(KEYS, 1))
    constraint = regex(text[:-2].replace("{", r"\{") + r"[0-9]\}")
    favoured = forced_tokens(runner, constraint)
    assert len(favoured) > 10
    steps = {}
    for name, limits in {"plain": NO_DRAFTS, "forced": FORCED_ONLY}.items():
        loop = EngineLoop(runner, drafts=limits)
        (sequence,) = asked(loop, [constraint], seed=None, max_tokens=150)
        sequence.sampling = replace(sequence.sampling, logit_bias=tuple((token, 50.0) for token in set(favoured)))
        loop.serve([sequence])
        made = sequence.token_ids[sequence.num_prompt_tokens :]
        steps[name] = (loop.engine.scheduler.num_steps, made)
        assert json.loads(text_of(tokenizer, PROMPTS[0], made[:-1])).keys() == set(KEYS)
        counts = drafts_of(loop)
    assert steps["plain"][1] == steps["forced"][1] and steps["plain"][0] == len(steps["plain"][1])
    assert steps["forced"][0] < 0.75 * len(steps["forced"][1])
    assert 0 < counts.num_forced_accepted == counts.num_accepted


def forced_tokens(runner: ModelRunner, constraint: Constraint) -> list[int]:
    """What is forced at the beginning."""
    assert runner.grammars is not None
    (sequence,) = asked(EngineLoop(runner), [constraint])
    runner.grammars.prepare(sequence)
    while not sequence.is_ready:
        pass
    return runner.grammars.forced(sequence, 100)


def test_who_does_not_want_drafts_has_none(runner: ModelRunner) -> None:
    default_off = replace(FORCED_ONLY, by_default=False)
    for limits, speculation, expected in (
        (FORCED_ONLY, False, False), (default_off, None, False), (default_off, True, True), (NO_DRAFTS, True, False),
    ):  # fmt: skip
        loop = EngineLoop(runner, drafts=limits)
        loop.serve(asked(loop, CASES, speculation=speculation))
        assert (drafts_of(loop).num_forced > 0) == expected
        assert "constraint" not in UNDRAFTED


def test_preempted_and_resumed_ones_get_the_same_tokens(runner: ModelRunner) -> None:
    constraints: list[Constraint | None] = [CASES[index % len(CASES)] for index in range(12)]
    plain = EngineLoop(runner)
    whole = asked(plain, constraints)
    wanted = outputs(plain, whole)
    info = replace(runner.info, num_blocks=40, max_context_tokens=100)
    tight = EngineLoop(runner, info=info, drafts=WITH_LOOKUP)
    assert [made[0] for made in outputs(tight, asked(tight, constraints))] == [made[0] for made in wanted]
    assert tight.num_preemptions > 0 and drafts_of(tight).num_forced_accepted > 0
    loop = EngineLoop(runner, drafts=WITH_LOOKUP)
    resumed = asked(loop, constraints)
    for cut, (again, first) in enumerate(zip(resumed, whole, strict=True), 1):
        again.token_ids = first.token_ids[: first.num_prompt_tokens + cut]
        again.num_prompt_tokens, again.num_generated_before = len(again.token_ids), cut
    loop.serve(resumed)
    assert [each.token_ids for each in resumed] == [each.token_ids for each in whole]


def test_what_fails_without_drafts_fails_with_them_alone(runner: ModelRunner) -> None:
    loop = EngineLoop(runner, drafts=FORCED_ONLY)
    banned, right = asked(loop, [CASES[3], CASES[3]])
    banned.sampling = replace(banned.sampling, allowed_token_ids=(50,))
    loop.serve([banned, right])
    error = loop.terminals[banned.sequence_id].error
    assert isinstance(error, InvalidRequest) and error.reason == "NO_TOKEN_LEFT"
    assert loop.terminals[right.sequence_id].error is None


def test_tokenizers_tokens_are_what_is_drafted(runner: ModelRunner, folder: Path) -> None:
    """What is forced, decoded, is a beginning of the only text there is."""
    tokenizer: tokenizers.Tokenizer = tokenizer_of(folder)
    text = "only this text, whose characters are ascii and ümläuts"
    assert text.startswith(tokenizer.decode(forced_tokens(runner, regex(text + "[0-9]"))))
