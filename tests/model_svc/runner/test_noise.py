import random

import torch

from model_svc.runner.noise import as_int64, uniform
from tokenwire import noise
from tokenwire.sampling import MAX_SEED


def test_tensor_bits_equal_the_pure_python_reference() -> None:
    rng = random.Random(1)
    cases = [(rng.getrandbits(64), rng.randrange(9), rng.randrange(10_000)) for _ in range(500)]
    cases += [(seed, choice, 0) for seed in (0, 1, 2**63 - 1, 2**63, MAX_SEED) for choice in (0, 1)]
    seeds, choices, positions = zip(*cases, strict=True)
    found = uniform(torch.tensor([as_int64(seed) for seed in seeds]), torch.tensor(choices), torch.tensor(positions))
    assert found.tolist() == [noise.uniform(*case) for case in cases]


def test_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 with seed 0, as published with its reference code."""
    outputs = [noise.mix(noise.GOLDEN_GAMMA * step & noise.MASK_64) for step in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_numbers_are_uniform_and_neighbours_unrelated() -> None:
    numbers = [noise.uniform(7, choice, position) for choice in range(4) for position in range(2500)]
    assert all(0 <= number < 1 for number in numbers)
    counts = [0] * 20
    for number in numbers:
        counts[int(number * 20)] += 1
    assert sum((count - 500) ** 2 / 500 for count in counts) < 43.8  # chi-square, 19 degrees, p = 0.001
    mean = sum(numbers) / len(numbers)
    products = [(a - mean) * (b - mean) for a, b in zip(numbers, numbers[1:], strict=False)]
    assert abs(sum(products) / len(products) * 12) < 0.04
    assert len({noise.uniform(seed, choice, 3) for seed in range(50) for choice in range(4)}) == 200
