"""What does not hold is said, and looked at again and again."""

import asyncio
import logging

import pytest

from tokenwire import invariants


def test_what_does_not_hold_is_said_each_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariants, "LOOK_S", 0.001)
    looked: list[str] = []

    def holds() -> None:
        looked.append("holds")

    def breaks() -> None:
        looked.append("breaks")
        raise AssertionError("two and two are five")

    async def main() -> None:
        task = asyncio.create_task(invariants.watch(breaks, holds))
        while looked.count("holds") < 2:
            await asyncio.sleep(0.001)
        task.cancel()

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(main())
    assert caplog.text.count(f"{invariants.BROKEN}: two and two are five") >= 2
