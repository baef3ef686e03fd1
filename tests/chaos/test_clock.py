"""Wall clocks jump by an hour while requests run: deadlines, credits and keepalives go on by the monotonic clock."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.conftest import MOCK_FLAGS, warm
from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack, chaos_stack
from tests.chaos.wall_clock import WallClock
from tokenwire.client import AsyncClient

pytestmark = pytest.mark.model
SHORT, LONG = pytest.mark.extended, pytest.mark.chaos

HOUR_S = 3600
MODEL, TOKENIZER, GATEWAY = (0,), (2,), (4,)
EVERYBODY = range(5)
"""Members of the stack, in its order."""


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> list[WallClock]:
    folder = tmp_path_factory.mktemp("clocks")
    return [WallClock(folder / f"clock-{number}") for number in EVERYBODY]


@pytest.fixture(scope="module")
def wrong(
    clocks: list[WallClock], model_folder: Path, fault_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosStack]:
    """A stack in which every process has a wall clock of its own."""
    logs = tmp_path_factory.mktemp("logs")
    with chaos_stack(model_folder, logs, *MOCK_FLAGS, clocks=clocks, CHAOS_FAULT=str(fault_file)) as stack:
        asyncio.run(warm(stack))
        stack.note()
        yield stack


JUMPS = [
    pytest.param(MODEL, HOUR_S, "one model tier's wall clock an hour ahead for 5 s", marks=SHORT),
    pytest.param(MODEL, -HOUR_S, "one model tier's wall clock an hour behind for 5 s", marks=LONG),
    pytest.param(TOKENIZER, HOUR_S, "one tokenizer tier's wall clock an hour ahead for 5 s", marks=LONG),
    pytest.param(TOKENIZER, -HOUR_S, "one tokenizer tier's wall clock an hour behind for 5 s", marks=LONG),
    pytest.param(GATEWAY, HOUR_S, "the gateway's wall clock an hour ahead for 5 s", marks=LONG),
    pytest.param(GATEWAY, -HOUR_S, "the gateway's wall clock an hour behind for 5 s", marks=LONG),
    pytest.param(EVERYBODY, HOUR_S, "all wall clocks an hour ahead for 5 s", marks=LONG),
]


@pytest.mark.parametrize(("members", "ahead_s", "name"), JUMPS)
def test_the_stack_outlives(
    wrong: ChaosStack, clocks: list[WallClock], record: Record, members: Sequence[int], ahead_s: int, name: str
) -> None:
    fault = Fault(name, lambda _: set_clocks(clocks, members, ahead_s), lambda _: set_clocks(clocks, members, 0),
                  lasts_s=5)  # fmt: skip
    try:
        record.rows.append(asyncio.run(under_load(wrong, fault)))
    finally:
        set_clocks(clocks, members, 0)


@pytest.mark.chaos
def test_a_tier_that_hangs_is_found_out_though_all_clocks_went_back(
    wrong: ChaosStack, clocks: list[WallClock], record: Record
) -> None:
    def begin(stack: ChaosStack) -> None:
        stack.to_models[0].held = True
        set_clocks(clocks, EVERYBODY, -HOUR_S)

    def end(stack: ChaosStack) -> None:
        set_clocks(clocks, EVERYBODY, 0)
        stack.restore()

    name = "one model tier in a black hole for 20 s, and all wall clocks an hour behind"
    try:
        record.rows.append(asyncio.run(under_load(wrong, Fault(name, begin, end, lasts_s=20))))
    finally:
        end(wrong)


@pytest.mark.extended
@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S])
def test_limits_of_time_neither_end_early_nor_grow_by_a_jump(
    wrong: ChaosStack, clocks: list[WallClock], ahead_s: int
) -> None:
    """Some have time enough, but not an hour; some would run for a minute."""

    async def main() -> list[str]:
        async with AsyncClient(wrong.target) as client, client.session() as session:

            async def end_of(num_tokens: int, timeout_s: float) -> str:
                stream = await session.submit("Long ago", max_tokens=num_tokens, ignore_eos=True, timeout_s=timeout_s)
                (output,) = await stream.outputs()
                return output.terminal.reason.name

            asked = [asyncio.ensure_future(end_of(*each)) for each in [(300, 100)] * 4 + [(6000, 5)] * 4]
            await asyncio.sleep(1)
            set_clocks(clocks, EVERYBODY, ahead_s)
            async with asyncio.timeout(90):
                return await asyncio.gather(*asked)

    try:
        assert asyncio.run(main()) == ["LENGTH"] * 4 + ["DEADLINE"] * 4
    finally:
        set_clocks(clocks, EVERYBODY, 0)


def set_clocks(clocks: list[WallClock], members: Sequence[int], ahead_s: int) -> None:
    for number in members:
        clocks[number].set(ahead_s)
