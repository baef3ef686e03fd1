"""What must hold whatever comes, looked at while a tier runs. For tests: where it does not hold, the log says so."""

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

BROKEN = "an invariant does not hold"
LOOK_S = 1.0

Check = Callable[[], None]
"""Raises AssertionError where something does not add up."""


def look(check: Check) -> None:
    """Say so in the log where it does not hold."""
    try:
        check()
    except AssertionError as error:
        log.critical("%s: %s", BROKEN, error)


async def watch(*checks: Check) -> None:
    """Look again and again, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        for check in checks:
            look(check)
