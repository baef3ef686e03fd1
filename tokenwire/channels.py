"""gRPC channels and the transport options on which both sides must agree."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from tokenwire.errors import FailedPrecondition
from tokenwire.grpc_tls import channel_credentials, channel_options
from tokenwire.tls import ClientTls, WatchedFiles

log = logging.getLogger(__name__)

S = TypeVar("S")

OLD_CHANNEL_S = 3600.0
"""How long calls on a channel may go on whose certificates have been replaced."""

KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000

KEEPALIVE_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


HANDSHAKE_TIMEOUT_MS = 10_000
"""From a connection's beginning to its first settings, TLS included; gRPC's own is two minutes."""


def server_options(max_message_bytes: int, *, share_port: bool = False) -> list[tuple[str, Any]]:
    """Options of a tier's server: pings are welcome, messages are bounded, a taken port is an error.

    `share_port`: other processes of this tier listen on the same port.
    """
    return [
        *KEEPALIVE_OPTIONS,
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]


def client_options(max_message_bytes: int = 64 * 2**20) -> list[tuple[str, Any]]:
    """Options of a channel to a tier. Each channel has a connection of its own, so that it may reach another worker."""
    return [
        *KEEPALIVE_OPTIONS,
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]


Options = Sequence[tuple[str, Any]]


def aio_channel(target: str, tls: ClientTls | None = None, options: Options = ()) -> grpc.aio.Channel:
    """An asyncio channel to `host:port`. Raises FailedPrecondition for TLS files that cannot be used. Close it."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=[*client_options(), *options])
    all_options = [*client_options(), *channel_options(tls), *options]
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=all_options)


def sync_channel(target: str, tls: ClientTls | None = None, options: Options = ()) -> grpc.Channel:
    """A channel to `host:port` for ordinary code. Raises as `aio_channel` does. Close it."""
    if tls is None:
        return grpc.insecure_channel(target, options=[*client_options(), *options])
    all_options = [*client_options(), *channel_options(tls), *options]
    return grpc.secure_channel(target, channel_credentials(tls), options=all_options)


class TierChannel(Generic[S]):
    """A channel to another tier and its stub, which follow the certificates' files. Lives on the event loop; close it.

    A channel keeps the credentials it was made with, so it is made anew; calls on the old one go on.
    """

    def __init__(self, target: str, make_stub: Callable[[grpc.aio.Channel], S], tls: ClientTls | None) -> None:
        """Raises FailedPrecondition."""
        self._target = target
        self._make_stub = make_stub
        self._tls = tls
        self._watched = WatchedFiles(tls.paths) if tls is not None else None
        self._closing: set[asyncio.Task[None]] = set()
        self.channel = aio_channel(target, tls)
        self.stub = make_stub(self.channel)

    def refreshed(self) -> S:
        """The stub with what the files hold now. What cannot be used is logged, and the old stays."""
        if self._watched is not None and self._watched.changed():
            try:
                fresh = aio_channel(self._target, self._tls)
            except FailedPrecondition as error:
                log.warning("the new certificates for %s cannot be used, the old ones stay: %s", self._target, error)
                return self.stub
            closing = asyncio.get_running_loop().create_task(self.channel.close(OLD_CHANNEL_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self.channel = fresh
            self.stub = self._make_stub(fresh)
        return self.stub

    async def close(self) -> None:
        """Cut every call."""
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.channel.close()
