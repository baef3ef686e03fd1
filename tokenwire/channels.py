"""gRPC channels and the transport options on which both sides must agree."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from tokenwire.addresses import refuse_bad_target
from tokenwire.errors import FailedPrecondition
from tokenwire.forks import aio_begins, grpc_begins, kept_in_forks
from tokenwire.grpc_tls import channel_credentials, channel_options
from tokenwire.tls import ClientTls, WatchedFiles

log = logging.getLogger(__name__)

S = TypeVar("S")

OLD_CHANNEL_S = 3600.0
"""How long calls on a channel may go on whose certificates have been replaced."""

KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
TIER_KEEPALIVE_TIME_MS = TIER_KEEPALIVE_TIMEOUT_MS = 5_000
"""From a tier to the one below: what runs there waits for as long, when its process is stopped or the network hangs,
before it goes on elsewhere.
"""


CONNECT_TIMEOUT_MS = 10_000
"""For a client's connection with its handshakes, of which over a long way each takes some tenths of a second."""
TIER_CONNECT_TIMEOUT_MS = 5_000


def connect_timeout(timeout_ms: int) -> tuple[str, Any]:
    """As an option, which gRPC calls otherwise: pauses between attempts are not affected."""
    return "grpc.min_reconnect_backoff_ms", timeout_ms


def keepalive_options(time_ms: int, timeout_ms: int) -> list[tuple[str, Any]]:
    """Ping after so long without a sign, and give up so long after that.

    Both timeouts are needed: `keepalive_timeout_ms` alone leaves gRPC 1.85 to wait for a minute, its own ping timeout.
    """
    return [
        ("grpc.keepalive_time_ms", time_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),
    ]


KEEPALIVE_OPTIONS: list[tuple[str, Any]] = [
    *keepalive_options(KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


HANDSHAKE_TIMEOUT_MS = 10_000
"""From a connection's beginning to its first settings, TLS included; gRPC's own is two minutes."""


MAX_STREAMS = 8192
"""Streams that one connection may have open at once, or reset and not let go of yet; clients hold more back by
themselves. Without a bound each that is opened and reset at once costs memory until a tier has seen it. Twice what a
gateway lets in by default, so that it refuses with a reason.
"""
MAX_PENDING_CALLS = 2 * MAX_STREAMS
"""Calls that have come and were not begun yet. Of more than 1,000 gRPC itself cuts some, of more than 3,000 all, as
CANCELLED without a word; a tier's own bounds refuse with a reason and a time to come back.
"""


IDENTITY_ONLY = 1
"""Bits of the compression algorithms that are read, of which 1 is none: a message of a few kilobytes could become any
size, some releases of gRPC inflate it before they look at it, and JSON bodies are not read compressed either.
"""


def server_options(
    max_message_bytes: int, *, share_port: bool = False, max_age_s: float = 0.0, age_grace_s: float = 0.0
) -> list[tuple[str, Any]]:
    """Options of a tier's server: pings are welcome, messages are bounded and not compressed, a taken port is an error.

    `share_port`: other processes of this tier listen on the same port. `max_age_s`: after so long, give or take a
    tenth, a connection is told to go (GOAWAY), and after `age_grace_s` more it is cut; 0: never.
    """
    ages = [("grpc.max_connection_age_ms", max_age_s), ("grpc.max_connection_age_grace_ms", age_grace_s)]
    return [
        *((name, max(1, round(seconds * 1000))) for name, seconds in ages if seconds > 0 and max_age_s > 0),
        *KEEPALIVE_OPTIONS,
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]


TIER_OPTIONS = [
    *keepalive_options(TIER_KEEPALIVE_TIME_MS, TIER_KEEPALIVE_TIMEOUT_MS),
    connect_timeout(TIER_CONNECT_TIMEOUT_MS),
]
"""Options of a tier's channel to the one below, in place of a client's."""


def client_options(max_message_bytes: int = 64 * 2**20) -> list[tuple[str, Any]]:
    """Options of a channel to a tier. Each channel has a connection of its own, so that it may reach another worker."""
    return [
        *KEEPALIVE_OPTIONS,
        ("grpc.initial_reconnect_backoff_ms", 100),
        connect_timeout(CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]


Options = Sequence[tuple[str, Any]]


def outranked(options: Options, by: Options) -> list[tuple[str, Any]]:
    """Both, without what `by` says anew: of an option given twice gRPC takes the first."""
    names = {name for name, _ in by}
    return [*(option for option in options if option[0] not in names), *by]


def aio_channel(target: str, tls: ClientTls | None = None, options: Options = ()) -> grpc.aio.Channel:
    """An asyncio channel to `host:port`. Close it.

    Raises InvalidRequest for a target that there cannot be, FailedPrecondition for TLS files that cannot be used, and
    in a forked process that has no gRPC.
    """
    refuse_bad_target(target)
    aio_begins()
    if tls is None:
        return kept_in_forks(grpc.aio.insecure_channel(target, options=outranked(client_options(), options)))
    all_options = outranked([*client_options(), *channel_options(tls)], options)
    return kept_in_forks(grpc.aio.secure_channel(target, channel_credentials(tls), options=all_options))


def sync_channel(target: str, tls: ClientTls | None = None, options: Options = ()) -> grpc.Channel:
    """A channel to `host:port` for ordinary code. Raises as `aio_channel` does. Close it."""
    refuse_bad_target(target)
    grpc_begins()
    if tls is None:
        return grpc.insecure_channel(target, options=outranked(client_options(), options))
    all_options = outranked([*client_options(), *channel_options(tls)], options)
    return grpc.secure_channel(target, channel_credentials(tls), options=all_options)


async def told_to_move(channel: grpc.aio.Channel) -> None:
    """Return when the connection that this channel has, or makes next, is to be left for a new one.

    A GOAWAY means so. Calls that run do not notice it: they go on where they are, and what begins now goes to a
    new connection. A connection that breaks is left too.
    """
    try:
        state = channel.get_state()
        while state is not grpc.ChannelConnectivity.READY:
            await channel.wait_for_state_change(state)
            state = channel.get_state()
        await channel.wait_for_state_change(state)
    except grpc.aio.UsageError:
        return  # the channel was closed


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
        self.channel = aio_channel(target, tls, TIER_OPTIONS)
        self.stub = make_stub(self.channel)

    def refreshed(self) -> S:
        """The stub with what the files hold now. What cannot be used is logged, and the old stays."""
        if self._watched is not None and self._watched.changed():
            try:
                fresh = aio_channel(self._target, self._tls, TIER_OPTIONS)
            except FailedPrecondition as error:
                log.warning("the new certificates for %s cannot be used, the old ones stay: %s", self._target, error)
                return self.stub
            closing = asyncio.get_running_loop().create_task(self.channel.close(OLD_CHANNEL_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self.channel = fresh
            self.stub = self._make_stub(fresh)
        return self.stub

    async def told_to_move(self) -> None:
        """As the function of that name, of the channel there is now."""
        await told_to_move(self.channel)

    async def close(self) -> None:
        """Cut every call."""
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.channel.close()
