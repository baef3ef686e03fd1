"""When requests are sent: Poisson arrivals for open loops. Knows neither clients nor servers."""

import random
from collections.abc import Iterator


def poisson(rate: float, num_requests: int, seed: int) -> Iterator[float]:
    """Seconds after the start at which each request is due: a Poisson process of `rate` requests a second.

    Raises ValueError unless the rate is above zero.
    """
    if rate <= 0:
        raise ValueError(f"--rate {rate:g}: requests a second, above 0")
    rng = random.Random(f"arrivals/{seed}")
    at_s = 0.0
    for _ in range(num_requests):
        at_s += rng.expovariate(rate)
        yield at_s
