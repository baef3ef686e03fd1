"""gRPC channels and the transport options on which both sides must agree."""

from typing import Any

import grpc

KEEPALIVE_TIME_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000

KEEPALIVE_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def server_options(max_message_bytes: int, *, share_port: bool = False) -> list[tuple[str, Any]]:
    """Options of a tier's server: pings are welcome, messages are bounded, a taken port is an error.

    `share_port`: other processes of this tier listen on the same port.
    """
    return [
        *KEEPALIVE_OPTIONS,
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
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


def aio_channel(target: str) -> grpc.aio.Channel:
    """An asyncio channel to `host:port`. Close it."""
    return grpc.aio.insecure_channel(target, options=client_options())
