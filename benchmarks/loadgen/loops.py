"""The one event loop of this process. gRPC's asyncio side is bound to the first loop it sees, so there is no second."""

import asyncio
import atexit
from collections.abc import Coroutine
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def _runner() -> asyncio.Runner:
    factory = import_module("uvloop").new_event_loop if find_spec("uvloop") is not None else None
    runner = asyncio.Runner(loop_factory=factory)
    atexit.register(runner.close)
    return runner


def in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end; uvloop's loop where there is one."""
    return _runner().run(coroutine)
