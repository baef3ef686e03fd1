"""Engine steps go wrong, under load."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack

SHORT, LONG = pytest.mark.extended, pytest.mark.chaos

FAULTS = [
    pytest.param("raise", "an engine step raises", {"STEP_FAILED"}, marks=SHORT),
    pytest.param("raise thrice", "three engine steps in a row raise", {"STEP_FAILED"}, marks=LONG),
    pytest.param("out of memory", "a step runs out of memory", set(), marks=SHORT),
    pytest.param("nan", "one row's logits are not numbers", {"SEQUENCE_FAILED"}, marks=SHORT),
    pytest.param("hang", "an engine step never ends (`engine-timeout-s` 4)", set(), marks=SHORT),
    pytest.param("exit", "the engine process exits within a step", set(), marks=LONG),
]


def goes_wrong(file: Path, how: str) -> Callable[[ChaosStack], None]:
    """Have the next step of an engine do so."""

    def begin(stack: ChaosStack) -> None:
        new = file.with_suffix(".new")
        new.write_text(how)
        new.rename(file)

    return begin


@pytest.mark.model
@pytest.mark.parametrize(("how", "name", "allowed"), FAULTS)
def test_the_stack_outlives(
    calm: ChaosStack, record: Record, fault_file: Path, how: str, name: str, allowed: set[str]
) -> None:
    fault = Fault(
        name, goes_wrong(fault_file, how), lambda stack: stack.restore(), lasts_s=8, allowed=frozenset(allowed)
    )
    row = asyncio.run(under_load(calm, fault))
    assert not fault_file.exists(), "no step did it"
    assert all(reason in row.seen for reason in allowed)
    record.rows.append(row)
