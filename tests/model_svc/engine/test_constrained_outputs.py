"""468 schemas and expressions, 378 of them supported, with models that know nothing of them.

Every output that ends keeps to its form.

The random model rambles, so closing characters are made likelier; what `max_tokens` cuts is counted, not judged.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from model_svc.engine.batch import ModelRunner
from model_svc.engine.sequence import Sequence
from model_svc.grammar.compiler import verdict_on
from model_svc.grammar.matching import Matching
from model_svc.grammar.vocabulary import Vocabulary
from tests.fakes.constrained import text_of, tokenizer_of, write_text_model
from tests.fakes.constraint_cases import OWN_SCHEMAS, REGEXES, random_schemas, suite_groups
from tests.fakes.engine_loop import EngineLoop
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire import models
from tokenwire.constraints import Constraint, json_schema, regex
from tokenwire.requests import FinishReason
from tokenwire.sampling import NEUTRAL, StopParams

NUM_RANDOM = 120
PROMPT = "Once upon"
LIKELIER = ('"', "}", "]", "0")


def supported(constraints: Rows[Constraint], vocabulary: Vocabulary) -> list[tuple[Constraint, str]]:
    """Those that compile, with their grammars."""
    verdicts = [(constraint, verdict_on(constraint, vocabulary)[0]) for constraint in constraints]
    return [(constraint, verdict.grammar) for constraint, verdict in verdicts if verdict.error is None]


def schema(value: Any) -> Constraint:
    return json_schema(json.dumps(value, ensure_ascii=False))


def outputs(
    runner: ModelRunner, folder: Path, cases: Rows[tuple[Constraint, str]], *, max_tokens: int, bias: float
) -> tuple[list[tuple[Constraint, str]], Counter[FinishReason]]:
    """The texts that ended, and how all ended."""
    tokenizer = tokenizer_of(folder)
    prompt = tokenizer.encode(PROMPT).ids
    eos = runner.info.eos_token_ids
    ids = [*eos, *(token_id for text in LIKELIER if (token_id := tokenizer.token_to_id(text)) is not None)]
    loop = EngineLoop(runner, batch=runner.info.max_batch_size)
    asked: list[Sequence] = []
    for seed, (_, grammar) in enumerate(cases):
        sampling = replace(NEUTRAL, temperature=1.0, seed=seed, logit_bias=tuple((token_id, bias) for token_id in ids))
        stop = StopParams(max_tokens=max_tokens, stop_token_ids=eos)
        asked.append(loop.sequence(prompt, 0, stop=stop, sampling=sampling, constraint=Matching(grammar)))
    loop.serve(asked)
    reasons = Counter(loop.terminals[sequence.sequence_id].reason for sequence in asked)
    ended = []
    for sequence, (constraint, _) in zip(asked, cases, strict=True):
        terminal = loop.terminals[sequence.sequence_id]
        assert terminal.error is None, (constraint, terminal.error)
        if terminal.reason is FinishReason.STOP_TOKEN:
            made = sequence.token_ids[len(prompt) : len(prompt) + terminal.usage.completion_tokens]
            ended.append((constraint, text_of(tokenizer, prompt, made)))
    return ended, reasons


def check(constraint: Constraint, text: str) -> None:
    if constraint.form.value == "regex":
        assert re.fullmatch(constraint.text, text), (constraint.text, text)
        return
    validator = Draft202012Validator(json.loads(constraint.text), format_checker=Draft202012Validator.FORMAT_CHECKER)
    validator.validate(json.loads(text))


@pytest.mark.parametrize("tokenizer", ["byte_level_bpe", "byte_fallback_bpe"])
def test_every_output_of_a_random_model_that_ends_is_what_was_asked_for(tmp_path: Path, tokenizer: str) -> None:
    folder = write_text_model(tmp_path / "text", tokenizer)
    runner = tiny_runner_of(str(folder), max_batch_size=64)
    assert runner.grammars is not None
    vocabulary = runner.grammars.vocabulary
    constraints = [
        *map(schema, OWN_SCHEMAS), *map(schema, random_schemas(NUM_RANDOM)), *map(regex, REGEXES),
        *(schema(group.schema) for group in suite_groups()),
    ]  # fmt: skip
    cases = supported(constraints, vocabulary)
    assert len(cases) >= 350
    ended, reasons = outputs(runner, folder, cases, max_tokens=400, bias=5.0)
    for constraint, text in ended:
        check(constraint, text)
    assert reasons.total() == len(cases) and set(reasons) <= {FinishReason.STOP_TOKEN, FinishReason.LENGTH}
    assert len(ended) >= 300, reasons
    runner.close()


@pytest.mark.model
def test_every_output_of_the_default_model_that_ends_is_what_was_asked_for() -> None:
    folder = models.resolve("default")
    runner = tiny_runner_of(str(folder), max_batch_size=32, kv_memory=2**30, dtype="float32", block_size=16, threads=2)
    assert runner.grammars is not None
    constraints = [
        *map(schema, OWN_SCHEMAS[::5]),
        *map(schema, random_schemas(NUM_RANDOM)[::15]),
        *map(regex, REGEXES[::6]),
    ]
    cases = supported(constraints, runner.grammars.vocabulary)
    assert len(cases) == len(constraints) >= 25
    ended, reasons = outputs(runner, folder, cases, max_tokens=32, bias=4.0)
    for constraint, text in ended:
        check(constraint, text)
    assert len(ended) >= 10, reasons
    runner.close()
