"""SIGTERM in the middle of everything: while requests run, while another part fails, while a tier starts."""

import asyncio
import signal
import time

import pytest

from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack, Member
from tests.chaos.test_links import spoil
from tests.chaos.test_processes import (
    GATEWAY_LOST,
    MODELS_LOST,
    TOKENIZER_LOST,
    both,
    engine_of,
    gateway,
    kill,
    model,
    other_model,
    restore,
    tell_to_end,
    tokenizer,
)  # fmt: skip

SHORT, LONG = pytest.mark.extended, pytest.mark.chaos
GATEWAY_ENDED = GATEWAY_LOST | {"SHUTTING_DOWN", "UNREACHABLE"}
ANY_LOST = GATEWAY_ENDED | MODELS_LOST | TOKENIZER_LOST


def other_tokenizer(stack: ChaosStack) -> Member:
    return stack.tokenizers[1]


def tell_a_hanging_one_to_end(stack: ChaosStack) -> None:
    engine = engine_of(stack.models[0])
    engine.send_signal(signal.SIGSTOP)
    tell_to_end(model)(stack)
    assert not engine.is_running(), "its engine was left behind"


def tell_to_end_while_starting(stack: ChaosStack) -> None:
    """Again and again, later each time."""
    tell_to_end(model, tokenizer)(stack)
    for wait_s in (0.1, 0.5, 1.0, 2.0):
        for member in (stack.models[0], stack.tokenizers[0]):
            stack.start(member)
        time.sleep(wait_s)
        tell_to_end(model, tokenizer)(stack)


FAULTS = [
    pytest.param(
        Fault("SIGTERM of the only gateway, started again after 1 s", tell_to_end(gateway), restore,
              serves_meanwhile=False, may_cut=True, allowed=GATEWAY_ENDED),
        marks=SHORT,
    ),
    pytest.param(
        Fault("SIGTERM of every tier at once, started again after 1 s",
              tell_to_end(model, other_model, tokenizer, other_tokenizer, gateway), restore, serves_meanwhile=False,
              may_cut=True, allowed=ANY_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGTERM of one model tier whose engine is stopped", tell_a_hanging_one_to_end, restore), marks=LONG
    ),
    pytest.param(
        Fault("SIGTERM of one model and one tokenizer tier, and four times while they start",
              tell_to_end_while_starting, restore, allowed=TOKENIZER_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGTERM of one model tier while the other is in a black hole for 3 s",
              both(spoil(models=1, held=True), tell_to_end(other_model)), restore, serves_meanwhile=False, lasts_s=3,
              allowed=MODELS_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGTERM of one tokenizer tier while kill -9 takes one model tier",
              both(kill(model), tell_to_end(tokenizer)), restore, allowed=TOKENIZER_LOST),
        marks=LONG,
    ),
]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_stack_outlives(calm: ChaosStack, record: Record, fault: Fault) -> None:
    record.rows.append(asyncio.run(under_load(calm, fault)))
