"""The stack that the fault tests share, and the table that they leave.

python -m pytest tests/chaos -m "chaos or extended" --faults-into docs/reliability.md
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.scenario import Record
from tests.chaos.stack import ChaosStack, chaos_stack
from tests.fakes.load import Load
from tokenwire.models import home

MOCK_FLAGS = (
    "--engine", "mock", "--mock-step-ms", "10", "--mock-kv-blocks", "4096", "--engine-timeout-s", "4",
    "--check-invariants",
)  # fmt: skip
"""Of the model tiers. Looking at the blocks after every step takes time for each block there is."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-into", default="", help="page into whose table of faults goes what was seen")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    folder = home() / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.fail("the default model is not in the cache: run `make model`")
    return folder


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Rows of every fault; printed at the end, and put into a page where one is named."""
    record = Record()
    yield record
    print(f"\n{record.table()}")
    if page := request.config.getoption("--faults-into", default=""):
        record.into(Path(page))


@pytest.fixture(scope="session")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written there goes wrong in the next step of the first engine that sees it."""
    return tmp_path_factory.mktemp("faults") / "next"


@pytest.fixture(scope="session")
def stack(model_folder: Path, fault_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosStack]:
    with chaos_stack(model_folder, tmp_path_factory.mktemp("logs"), *MOCK_FLAGS, CHAOS_FAULT=str(fault_file)) as stack:
        asyncio.run(warm(stack))
        stack.note()
        yield stack


async def warm(stack: ChaosStack) -> None:
    """Some load, so that pools and caches are as large as they will be."""
    load = Load([stack.target], [stack.http_url])
    await load.learn()
    running = asyncio.ensure_future(load.run())
    await load.until_served(100, running)
    load.stop = True
    await running
    assert not load.ledger.broken and set(load.ledger.outcomes) <= {"ok", "cancelled"}, load.ledger
    await asyncio.to_thread(stack.restore)


@pytest.fixture
def calm(stack: ChaosStack) -> Iterator[ChaosStack]:
    """Serving, with nothing under way and every connection whole; afterwards whoever is gone is started again."""
    yield stack
    stack.restore()
