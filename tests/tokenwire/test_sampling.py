import pytest

from tokenwire.requests import GenerationOptions
from tokenwire.sampling import SamplingParams, StopParams


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
