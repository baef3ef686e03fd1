"""The same with a real model in fp32: what goes on elsewhere gives the text that it gives undisturbed."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import warm
from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack, chaos_stack
from tests.chaos.test_links import heal, spoil
from tests.chaos.test_processes import kill, model, restore, signal_engines

pytestmark = [pytest.mark.chaos, pytest.mark.model]


@pytest.fixture(scope="module")
def real(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosStack]:
    flags = ("--dtype", "float32", "--threads", "1")
    with chaos_stack(model_folder, tmp_path_factory.mktemp("logs"), *flags) as stack:
        asyncio.run(warm(stack))
        stack.note()
        yield stack


FAULTS = [
    Fault("SmolLM2 in fp32: kill -9 of one model tier of two", kill(model), restore),
    Fault("SmolLM2 in fp32: kill -9 of one engine process", signal_engines(signal.SIGKILL, model), restore),
    Fault("SmolLM2 in fp32: connections to one model tier reset", spoil(models=1, resets=True), heal),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_stack_outlives(real: ChaosStack, record: Record, fault: Fault) -> None:
    record.rows.append(asyncio.run(under_load(real, fault, width=1)))
    real.restore()
