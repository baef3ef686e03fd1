"""The JSON Schema Test Suite: what a schema's grammar takes for valid is valid, and little that is valid is missing."""

import json
from functools import cache

from model_svc.grammar.compiler import Verdict, verdict_on
from model_svc.grammar.library import new_matcher
from model_svc.grammar.vocabulary import Vocabulary, vocabulary_of
from tests.fakes.constraint_cases import suite_groups
from tokenwire.constraints import json_schema
from tokenwire.errors import InvalidRequest

UNSUPPORTED = {
    "contains", "dependentRequired", "dependentSchemas", "if-then-else", "maxContains", "minContains", "not",
    "propertyNames", "uniqueItems",
}  # fmt: skip
"""Keywords whose own tests are all refused."""


@cache
def single_bytes() -> Vocabulary:
    return vocabulary_of({byte: bytes([byte]) for byte in range(256)}, {}, 256)


def verdict(schema: object) -> Verdict:
    return verdict_on(json_schema(json.dumps(schema)), single_bytes())[0]


def accepts(grammar: str, text: str) -> bool:
    matcher = new_matcher(single_bytes(), grammar)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


def test_no_grammar_takes_an_instance_that_is_not_valid_and_few_valid_ones_are_missing() -> None:
    num_compiled = num_invalid = num_valid = 0
    missing = []
    for group in suite_groups():
        found = verdict(group.schema)
        if found.error is not None:
            continue
        num_compiled += 1
        for instance, valid in group.tests:
            taken = accepts(found.grammar, json.dumps(instance, ensure_ascii=False))
            assert valid or not taken, (group.description, group.schema, instance)
            num_valid += valid
            num_invalid += not valid
            if valid and not taken:
                missing.append((group.description, instance))
    assert num_compiled >= 140 and num_valid >= 240 and num_invalid >= 220
    assert len(missing) <= 12, missing  # other orders of properties, and 1.0 for 1


def test_what_is_not_supported_is_refused_by_keyword_and_never_passed_over() -> None:
    refused: dict[str, int] = {}
    for group in suite_groups():
        error = verdict(group.schema).error
        assert (error is not None) or group.keyword not in UNSUPPORTED, group.description
        if error is not None:
            assert isinstance(error, InvalidRequest) and error.violations
            refused[group.keyword] = refused.get(group.keyword, 0) + 1
    assert sum(refused.values()) <= 95, refused
