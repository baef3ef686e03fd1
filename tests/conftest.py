"""What pytest has collected stays to the end of the run, so looks for garbage leave it out; and a call's time."""

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def call_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """A call's time, in seconds. Half of it the tiers leave for the way back: their end comes first, however busy a
    machine is."""
    monkeypatch.setattr("tokenwire.wire.CALL_MARGIN_S", 1.5)  # loaded now: not everywhere is what it needs
    return 3.0
