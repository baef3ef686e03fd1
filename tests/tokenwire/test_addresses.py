"""Ports that are handed out."""

import socket
from pathlib import Path

import pytest

from tokenwire.addresses import free_ports
from tokenwire.errors import FailedPrecondition

OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_free_ports_differ_and_can_be_listened_on() -> None:
    ports = [*free_ports(500), *free_ports(500)]
    assert len(set(ports)) == 1000
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


@pytest.mark.skipif(not OUTGOING.exists(), reason="only Linux tells which ports connections get")
def test_free_ports_are_none_that_a_connection_may_take() -> None:
    assert max(free_ports(100)) < int(OUTGOING.read_text().split()[0])


def test_more_free_ports_than_there_are_cannot_be_had() -> None:
    with pytest.raises(FailedPrecondition, match="20000 free ports are wanted"):
        free_ports(20_000)
