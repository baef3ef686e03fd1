import math
from dataclasses import replace
from typing import Any

import pytest

from tokenwire.requests import GenerationOptions
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams


@pytest.mark.parametrize("top_k", [-1, 2**31, 2**70])
def test_top_k_fits_the_wire(top_k: int) -> None:
    assert [v.field for v in SamplingParams(top_k=top_k).violations()] == ["sampling.top_k"]
    assert SamplingParams(top_k=2**31 - 1).violations() == []


@pytest.mark.parametrize("max_tokens", [-1, 0, 2**32])
def test_max_tokens_fits_the_wire(max_tokens: int) -> None:
    (violation,) = StopParams(max_tokens=max_tokens).violations()
    assert violation.field == "stop.max_tokens"
    assert f"{max_tokens} is not allowed: an integer ≥ 1" in violation.description
    assert StopParams(max_tokens=2**32 - 1).violations() == []


def test_stop_token_ids_fit_the_wire() -> None:
    assert [v.field for v in StopParams(stop_token_ids=(5, -1, 2**32)).violations()] == ["stop.stop_token_ids"]


def test_a_stop_string_must_be_unicode() -> None:
    (violation,) = GenerationOptions(stop_strings=("a\ud800",)).violations()
    assert violation.field == "options.stop.stop_strings" and violation.description.isascii()


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("repetition_penalty", (0.0, -1.0, 101.0, math.nan), (0.01, 100.0)),
        ("presence_penalty", (-2.1, 2.1, math.nan), (-2.0, 2.0)),
        ("frequency_penalty", (-2.1, math.inf), (-2.0, 0.0)),
        ("logit_bias", (((1, 100.5),), ((1, math.nan),), ((-1, 0.0),), ((2**32, 0.0),)), (((1, -100.0),),)),
        ("logit_bias", (tuple((i, 1.0) for i in range(1025)),), (tuple((i, 1.0) for i in range(1024)),)),
        ("allowed_token_ids", ((-1,), (2**32,), tuple(range(65_537))), ((0, 2**32 - 1),)),
        ("banned_sequences", (((),), ((1,) * 65,), ((1,),) * 257, ((1, -1),)), (((1,) * 64,) * 256,)),
    ],
)
def test_values_out_of_range_are_named(name: str, bad: tuple, good: tuple) -> None:
    for value in bad:
        assert [v.field for v in SamplingParams(**{name: value}).violations("s")] == [f"s.{name}"], value
    for value in good:
        assert SamplingParams(**{name: value}).violations() == []


def test_min_tokens_is_within_max_tokens() -> None:
    assert [v.field for v in StopParams(max_tokens=3, min_tokens=4).violations()] == ["stop.min_tokens"]
    assert [v.field for v in StopParams(min_tokens=-1).violations()] == ["stop.min_tokens"]
    assert StopParams(max_tokens=3, min_tokens=3).violations() == []


@pytest.mark.parametrize(
    ("changed", "penalised"),
    [
        ({}, False), ({"repetition_penalty": 1.01}, True), ({"repetition_penalty": 0.5}, True),
        ({"presence_penalty": -0.5}, True), ({"frequency_penalty": 0.5}, True), ({"logit_bias": ((1, 2.0),)}, False),
    ],
)  # fmt: skip
def test_whether_a_penalty_may_change_anything(changed: dict[str, Any], penalised: bool) -> None:
    assert replace(NEUTRAL, **changed).is_penalised is penalised


def test_defaults_fill_in_what_is_absent_and_nothing_else() -> None:
    given = SamplingParams(temperature=0.7, presence_penalty=0.0, logit_bias=((1, 2.0),))
    filled = given.with_defaults(SamplingParams(temperature=1.0, top_k=5, presence_penalty=1.0, seed=3))
    assert filled == SamplingParams(temperature=0.7, top_k=5, presence_penalty=0.0, seed=3, logit_bias=((1, 2.0),))
