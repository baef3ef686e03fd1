"""Ports that are handed out, and targets that there can be."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenwire.addresses import free_ports, refuse_bad_target
from tokenwire.channels import aio_channel, sync_channel
from tokenwire.client import Client
from tokenwire.errors import FailedPrecondition, InvalidRequest

OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_free_ports_differ_and_can_be_listened_on() -> None:
    ports = [*free_ports(500), *free_ports(500)]
    assert len(set(ports)) == 1000
    for port in ports:
        with socket.socket() as listener:  # as servers do it, though connections of an earlier one may still be closing
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()


@pytest.mark.skipif(not OUTGOING.exists(), reason="only Linux tells which ports connections get")
def test_free_ports_are_none_that_a_connection_may_take() -> None:
    assert max(free_ports(100)) < int(OUTGOING.read_text().split()[0])


def test_more_free_ports_than_there_are_cannot_be_had() -> None:
    with pytest.raises(FailedPrecondition, match="20000 free ports are wanted"):
        free_ports(20_000)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:1", "gateway:65535", "gateway", "[::1]:50051", "[::1]", "::1", "[fe80::1%eth0]:50051", "dns:///gateway:50051",
        "dns:gateway:50051", "dns://8.8.8.8:53/gateway:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1,[::2]:2",
        "unix:/run/a.sock", "unix:///run/a.sock", "unix-abstract:a", "xds:///gateway", "tokenizer-svc.apps_1:50052",
    ],
)  # fmt: skip
def test_targets_of_grpc_are_taken(target: str) -> None:
    refuse_bad_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:99999", "127.0.0.1:65536", "127.0.0.1:0", "gateway:-1", "gateway:", "gateway:http", ":50051", "",
        " ", "gate way:1", "gateway:1 ", "gateway:1\n", "gateway:\u0661", "http://gateway:1", "dns:///gateway:99999",
        "ipv4:127.0.0.1:1,127.0.0.1:99999", "[::1]:99999", "[::1]99", "gateway:1/", None, b"gateway:1", 50051,
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused_before_grpc_sees_it(target: object) -> None:
    with pytest.raises(InvalidRequest, match="target.*is not allowed"):
        refuse_bad_target(target)


@pytest.mark.parametrize("client", [Client, sync_channel, aio_channel])
def test_whoever_takes_a_target_refuses_it(client: Callable[[str], object]) -> None:
    with pytest.raises(InvalidRequest, match="target"):
        client("127.0.0.1:99999")
