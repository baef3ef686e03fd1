"""Work side by side: all of it, or the first error and nothing left running."""

import asyncio

import pytest

from tokenwire.tasks import all_of


async def give(value: int, after_s: float = 0.0, ended: list[int] | None = None) -> int:
    try:
        await asyncio.sleep(after_s)
    except asyncio.CancelledError:
        if ended is not None:
            ended.append(value)
        raise
    if value < 0:
        raise ValueError(value)
    return value


def test_results_are_in_order() -> None:
    assert asyncio.run(all_of([give(1, 0.01), give(2), give(3)])) == [1, 2, 3]


def test_the_first_error_ends_the_others_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []
    with pytest.raises(ValueError, match="-1"):
        asyncio.run(all_of([give(1, 60, ended), give(-1), give(-2)]))
    assert ended == [1] and not caplog.text
