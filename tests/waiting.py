"""Waits of tests for processes: a limit each, and what is told when it is over."""

import subprocess
import time
from collections.abc import Callable

import grpc

from tokenwire.health import is_serving
from tokenwire.tls import ClientTls

START_TIMEOUT_S = 120


def wait_for(condition: Callable[[], object], limit_s: float = START_TIMEOUT_S, told: Callable[[], str] = str) -> None:
    """AssertionError, with what is `told` then, if it does not come true within the limit."""
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, told()
        time.sleep(0.05)


def serves(target: str, tls: ClientTls | None = None) -> bool:
    """Whether the health there says so now."""
    try:
        return is_serving(target, 1.0, tls)
    except grpc.RpcError:
        return False


def wait_until_serving(
    target: str,
    process: subprocess.Popen[bytes] | None = None,
    told: Callable[[], str] = str,
    tls: ClientTls | None = None,
) -> None:
    """AssertionError, with what is `told`, if it does not serve in time or `process` ends before."""

    def serving() -> bool:
        assert process is None or process.poll() is None, told()
        return serves(target, tls)

    wait_for(serving, told=lambda: f"{target} does not serve\n{told()}")
