"""The sampler against exact distributions and against transformers' logits warpers."""

import pytest
import torch

from model_svc.runner import sampler
from model_svc.runner.sampler import NOT_FINITE, RowSampling
from tests.fakes.distributions import chi_square_fits, filtered
from tokenwire.sampling import MAX_SEED, SamplingParams


def params(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int = 1
) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)


def sample(logits: torch.Tensor, rows: list[RowSampling]) -> list[int]:
    return sampler.sample(logits, rows).tolist()


def rows_of(sampling: SamplingParams, num: int) -> list[RowSampling]:
    return [RowSampling(sampling, 0, position) for position in range(num)]


CASES = [
    params(),
    params(temperature=0.6),
    params(temperature=1.7),
    params(top_k=7),
    params(top_p=0.8),
    params(min_p=0.15),
    params(temperature=1.3, top_k=15, top_p=0.9, min_p=0.02),
    params(top_k=10_000, top_p=0.5),
    params(top_p=1e-6),
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_frequencies_match_the_exact_distribution(sampling: SamplingParams) -> None:
    """Chi-square at p = 0.001 over 20,000 draws with fixed seeds; nothing outside the support."""
    num = 20_000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 1.5
    drawn = sample(logits.expand(num, -1), rows_of(sampling, num))
    assert chi_square_fits(drawn, filtered(logits, sampling))


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_a_draw_does_not_depend_on_the_rest_of_the_batch(sampling: SamplingParams) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(32, 500, generator=generator) * 3
    mixed = [RowSampling(CASES[i % len(CASES)], i % 3, i) for i in range(32)]
    for index in (0, 13, 31):
        mixed[index] = RowSampling(sampling, 1, index)
    together = sample(logits, mixed)
    assert [sample(logits[i : i + 1], mixed[i : i + 1])[0] for i in (0, 13, 31)] == [together[i] for i in (0, 13, 31)]


def test_greedy_rows_take_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, -1.0, 0.0, 4.0]], dtype=torch.bfloat16)
    assert sample(logits, rows_of(params(temperature=0.0), 2)) == [1, 0]


def test_mixed_rows_keep_their_places() -> None:
    logits = torch.full((5, 6), -100.0)
    logits[range(5), [4, 0, 3, 5, 2]] = 100.0
    mixed = [params(), params(temperature=0.0), params(top_k=2), params(top_p=0.5), params(temperature=2.0)]
    assert sample(logits, [RowSampling(p, 0, 0) for p in mixed]) == [4, 0, 3, 5, 2]


@pytest.mark.parametrize("sampling", [params(top_k=2), params(top_p=0.4), params(min_p=1.0)], ids=str)
def test_tokens_that_tie_with_the_last_kept_are_kept(sampling: SamplingParams) -> None:
    logits = torch.tensor([2.0, 1.0, 2.0, 2.0, 0.0])
    drawn = sample(logits.expand(300, -1), rows_of(sampling, 300))
    assert set(drawn) == {0, 2, 3}


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_wide_nucleus_is_found_by_the_longer_searches(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(2))
    drawn = []
    for sizes in ((300,), (4, 16), ()):
        monkeypatch.setattr(sampler, "NUCLEUS_SIZES", sizes)
        drawn.append(sample(logits, rows_of(params(top_p=top_p), 8)))
    assert drawn[0] == drawn[1] == drawn[2]
    for row, token in enumerate(drawn[0]):
        assert filtered(logits[row], params(top_p=top_p))[token] > 0


@pytest.mark.parametrize("temperature", [1e-300, 1e-20, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 4.0, 3.9]])
    for sampling in (params(temperature=temperature), params(temperature=temperature, top_p=0.9, top_k=2)):
        assert sample(logits, rows_of(sampling, 1)) == [1]


def test_a_huge_temperature_is_uniform() -> None:
    drawn = sample(torch.tensor([[0.0, 50.0]]).expand(200, -1), rows_of(params(temperature=1e30), 200))
    assert 60 < sum(drawn) < 140


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [params(temperature=0.0), params(), params(top_p=0.9, top_k=2)], ids=str)
def test_a_row_that_is_not_finite_is_told_and_alone(bad: float, sampling: SamplingParams) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 3] = bad
    logits[2, 4] = 100.0
    drawn = sample(logits, rows_of(sampling, 3))
    assert drawn[1] == NOT_FINITE
    assert 0 <= drawn[0] < 5
    assert drawn[2] == 4


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((400, 6), -torch.inf)
    logits[:, [1, 4]] = 0.0
    assert set(sample(logits, rows_of(params(seed=MAX_SEED), 400))) == {1, 4}
    assert sample(torch.full((1, 3), -torch.inf), rows_of(params(), 1)) == [NOT_FINITE]


def test_the_extremes_of_noise_stay_in_the_support() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    for number, token in ((0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2**-53, 3)):
        assert sampler.invert(probabilities, torch.tensor([[number]], dtype=torch.float64)).tolist() == [token]


def test_logits_are_not_changed() -> None:
    logits = torch.randn(4, 30)
    before = logits.clone()
    sample(logits, rows_of(params(top_k=3, top_p=0.7, min_p=0.1), 4))
    assert torch.equal(logits, before)
