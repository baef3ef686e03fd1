"""Every tier's processes are killed, stopped for a while and told to end, under load."""

import asyncio
import signal
from collections.abc import Callable

import psutil
import pytest

from tests.chaos.hanging import GO_ON, HANG
from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack, Member

Which = Callable[[ChaosStack], Member]

SHORT, LONG = pytest.mark.extended, pytest.mark.chaos
TOKENIZER_LOST = frozenset({"TOKENIZER_TIER_LOST"})
GATEWAY_LOST = frozenset({"UNAVAILABLE", "connection lost", "STREAM_CUT", "TOKENIZER_TIER_DOWN"})
MODELS_LOST = frozenset({"MODEL_TIER_LOST", "MODEL_TIER_DOWN", "ENGINE_LOST"})
LONGER_THAN_KEEPALIVE_S = 20
LONGER_THAN_SILENCE_S = 30


def model(stack: ChaosStack) -> Member:
    return stack.models[0]


def tokenizer(stack: ChaosStack) -> Member:
    return stack.tokenizers[0]


def gateway(stack: ChaosStack) -> Member:
    return stack.gateway


def kill(*members: Which) -> Callable[[ChaosStack], None]:
    """kill -9."""

    def begin(stack: ChaosStack) -> None:
        for member in members:
            member(stack).signal(signal.SIGKILL)
        for member in members:
            wait_for_end(member(stack))

    return begin


def tell_to_end(*members: Which) -> Callable[[ChaosStack], None]:
    """SIGTERM."""

    def begin(stack: ChaosStack) -> None:
        for member in members:
            member(stack).signal(signal.SIGTERM)
        for member in members:
            wait_for_end(member(stack))

    return begin


def wait_for_end(member: Member) -> None:
    assert member.process is not None
    member.process.wait(40)


def stop(*members: Which) -> Callable[[ChaosStack], None]:
    """SIGSTOP."""
    return lambda stack: [member(stack).signal(signal.SIGSTOP) for member in members][0]


def engine_of(member: Member) -> psutil.Process:
    (engine,) = psutil.Process(member.pid).children()
    return engine


def signal_engines(number: signal.Signals, *members: Which) -> Callable[[ChaosStack], None]:
    def begin(stack: ChaosStack) -> None:
        for member in members:
            engine_of(member(stack)).send_signal(number)

    return begin


def hang(member: Which) -> Callable[[ChaosStack], None]:
    """Its event loop alone: gRPC's threads answer pings."""
    return lambda stack: member(stack).signal(HANG)


def go_on(member: Which) -> Callable[[ChaosStack], None]:
    def end(stack: ChaosStack) -> None:
        member(stack).signal(GO_ON)
        stack.restore()

    return end


def restore(stack: ChaosStack) -> None:
    stack.restore()


def other_model(stack: ChaosStack) -> Member:
    return stack.models[1]


def both(*begins: Callable[[ChaosStack], None]) -> Callable[[ChaosStack], None]:
    def begin(stack: ChaosStack) -> None:
        for each in begins:
            each(stack)

    return begin


FAULTS = [
    pytest.param(Fault("kill -9 of one model tier of two", kill(model), restore), marks=SHORT),
    pytest.param(
        Fault("kill -9 of one tokenizer tier of two", kill(tokenizer), restore, allowed=TOKENIZER_LOST), marks=SHORT
    ),
    pytest.param(
        Fault("kill -9 of the only gateway, started again after 1 s", kill(gateway), restore, serves_meanwhile=False,
              may_cut=True, allowed=GATEWAY_LOST),
        marks=SHORT,
    ),
    pytest.param(
        Fault("kill -9 of both model tiers, started again after 1 s", kill(model, other_model), restore,
              serves_meanwhile=False, allowed=MODELS_LOST),
        marks=LONG,
    ),
    pytest.param(Fault("kill -9 of one engine process", signal_engines(signal.SIGKILL, model), restore), marks=SHORT),
    pytest.param(
        Fault("kill -9 of both engine processes", signal_engines(signal.SIGKILL, model, other_model), restore,
              allowed=MODELS_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGSTOP of one engine process (`engine-timeout-s` 4)", signal_engines(signal.SIGSTOP, model), restore,
              lasts_s=8),
        marks=SHORT,
    ),
    pytest.param(
        Fault("SIGSTOP of one model tier for 20 s", stop(model), restore, lasts_s=LONGER_THAN_KEEPALIVE_S), marks=LONG
    ),
    pytest.param(
        Fault("SIGSTOP of one model tier for 2 s", stop(model), restore, lasts_s=2, serves_meanwhile=False), marks=LONG
    ),
    pytest.param(
        Fault("SIGSTOP of one tokenizer tier for 20 s", stop(tokenizer), restore, lasts_s=LONGER_THAN_KEEPALIVE_S,
              allowed=TOKENIZER_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGSTOP of one tokenizer tier for 2 s", stop(tokenizer), restore, lasts_s=2, serves_meanwhile=False),
        marks=LONG,
    ),
    pytest.param(
        Fault("the event loop of one model tier hangs for 30 s", hang(model), go_on(model),
              lasts_s=LONGER_THAN_SILENCE_S),
        marks=LONG,
    ),
    pytest.param(
        Fault("the event loop of one tokenizer tier hangs for 30 s", hang(tokenizer), go_on(tokenizer),
              lasts_s=LONGER_THAN_SILENCE_S, allowed=TOKENIZER_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGSTOP of the only gateway for 3 s", stop(gateway), restore, lasts_s=3, serves_meanwhile=False),
        marks=LONG,
    ),
    pytest.param(
        Fault("SIGTERM of one model and one tokenizer tier at once", tell_to_end(model, tokenizer), restore,
              allowed=TOKENIZER_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("kill -9 of one model tier while the other's engine is stopped",
              both(signal_engines(signal.SIGSTOP, other_model), kill(model)), restore, serves_meanwhile=False,
              lasts_s=3, allowed=MODELS_LOST),
        marks=LONG,
    ),
    pytest.param(
        Fault("kill -9 of one model and one tokenizer tier at once", kill(model, tokenizer), restore,
              allowed=TOKENIZER_LOST),
        marks=LONG,
    ),
]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_stack_outlives(calm: ChaosStack, record: Record, fault: Fault) -> None:
    record.rows.append(asyncio.run(under_load(calm, fault)))
