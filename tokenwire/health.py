"""Asks grpc.health.v1 whether a whole server can answer, without that service's stubs.

The request for the whole server is the empty message, and the answer is one enum, so the thin client needs no further
package. Raises what the transport raises.
"""

import asyncio
from typing import Any

import grpc

from tokenwire.addresses import refuse_bad_target
from tokenwire.channels import CONNECT_TIMEOUT_MS, connect_timeout, sync_channel
from tokenwire.grpc_tls import channel_credentials, channel_options
from tokenwire.tls import ClientTls

METHOD = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
"""HealthCheckResponse with status (field 1, varint) SERVING (1)."""

RECONNECT_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    connect_timeout(CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", 100),
]
"""A server that is starting is looked for often."""


def is_serving(target: str, timeout_s: float = 5.0, tls: ClientTls | None = None) -> bool:
    """Whether the server at `host:port` says SERVING. Raises grpc.RpcError when it cannot be asked."""
    with sync_channel(target, tls) as channel:
        answer: bytes = channel.unary_unary(METHOD)(b"", timeout=timeout_s)
    return answer == SERVING


async def wait_serving(target: str, interval_s: float = 0.05, tls: ClientTls | None = None) -> None:
    """Return once the server at `host:port` says SERVING. Waits forever: cancel it."""
    async with _often_connecting(target, tls) as channel:
        check: Any = channel.unary_unary(METHOD)
        while True:
            try:
                if await check(b"", timeout=5.0) == SERVING:
                    return
            except grpc.RpcError:
                pass  # not listening yet; whoever waits also watches the process
            await asyncio.sleep(interval_s)


def _often_connecting(target: str, tls: ClientTls | None) -> grpc.aio.Channel:
    refuse_bad_target(target)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=RECONNECT_OPTIONS)
    options = [*RECONNECT_OPTIONS, *channel_options(tls)]
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=options)
