"""Connections between tiers are cut, held, slowed down and filled with garbage, under load."""

import asyncio
from collections.abc import Callable

import pytest

from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack

SHORT, LONG = pytest.mark.extended, pytest.mark.chaos
TOKENIZER_LOST = frozenset({"TOKENIZER_TIER_LOST"})
ANY_LOST = TOKENIZER_LOST | {"TOKENIZER_TIER_DOWN", "MODEL_TIER_LOST", "MODEL_TIER_DOWN"}
LONGER_THAN_KEEPALIVE_S = 20


def spoil(*, models: int = 0, tokenizers: int = 0, **how: object) -> Callable[[ChaosStack], None]:
    """Set this of the proxies before so many tiers of each kind."""

    def begin(stack: ChaosStack) -> None:
        for proxy in (*stack.to_models[:models], *stack.to_tokenizers[:tokenizers]):
            for name, value in how.items():
                setattr(proxy, name, value)

    return begin


def heal(stack: ChaosStack) -> None:
    stack.restore()


def fault(
    name: str, begin: Callable[[ChaosStack], object], mark: pytest.MarkDecorator = LONG, **more: object
) -> object:
    return pytest.param(Fault(name, begin, heal, **more), marks=mark)  # type: ignore[arg-type]


FAULTS = [
    fault("connections to one model tier reset", spoil(models=1, resets=True), SHORT),
    fault("connections to one tokenizer tier reset", spoil(tokenizers=1, resets=True), SHORT, allowed=TOKENIZER_LOST),
    fault("all connections between tiers reset at once", spoil(models=2, tokenizers=2, resets=True), allowed=ANY_LOST),
    fault("one model tier refuses connections for 5 s", spoil(models=1, resets=True, refuses=True), lasts_s=5),
    fault("both tokenizer tiers refuse connections for 3 s", spoil(tokenizers=2, resets=True, refuses=True), lasts_s=3,
          serves_meanwhile=False, allowed=ANY_LOST),
    fault("one model tier in a black hole for 2 s", spoil(models=1, held=True), SHORT, lasts_s=2,
          serves_meanwhile=False),
    fault("one model tier in a black hole for 20 s", spoil(models=1, held=True), lasts_s=LONGER_THAN_KEEPALIVE_S),
    fault("one tokenizer tier in a black hole for 20 s", spoil(tokenizers=1, held=True),
          lasts_s=LONGER_THAN_KEEPALIVE_S, allowed=TOKENIZER_LOST),
    fault("all connections between tiers in a black hole for 3 s", spoil(models=2, tokenizers=2, held=True), lasts_s=3,
          serves_meanwhile=False, allowed=ANY_LOST),
    fault("connections to one model tier delayed by 200 ms", spoil(models=1, delay_s=0.2), lasts_s=5),
    fault("all connections between tiers delayed by 100 ms", spoil(models=2, tokenizers=2, delay_s=0.1), lasts_s=5),
    fault("connections to one model tier throttled to 4 kB/s", spoil(models=1, bytes_per_s=4000), lasts_s=5),
    fault("connections to one tokenizer tier throttled to 4 kB/s", spoil(tokenizers=1, bytes_per_s=4000), lasts_s=5),
    fault("one model tier answers random bytes for 5 s", spoil(models=1, garbage=True), SHORT, lasts_s=5),
    fault("one tokenizer tier answers random bytes for 5 s", spoil(tokenizers=1, garbage=True), lasts_s=5,
          allowed=TOKENIZER_LOST),
    fault("one model tier delayed, the other reset", lambda stack: (
        spoil(models=2, delay_s=0.1)(stack), spoil(models=1, resets=True)(stack)), lasts_s=3),
]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_stack_outlives(calm: ChaosStack, record: Record, fault: Fault) -> None:
    record.rows.append(asyncio.run(under_load(calm, fault)))
