"""Addresses to listen on: written out, tried, and told apart. Knows no server."""

import ipaddress
import random
import socket
from itertools import cycle, islice

from tokenwire.errors import FailedPrecondition

BELOW_OUTGOING = range(20_000, 30_000)
_in_turn = cycle(random.sample(BELOW_OUTGOING, len(BELOW_OUTGOING)))


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now; a connection that is still closing does not count."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different, also from those of earlier calls in this process.

    None is among those that outgoing connections get (from 32768 on Linux): one of those would soon be taken again.
    Another process may listen on one before it is used. Raises FailedPrecondition where there are not so many.
    """
    found = list(islice(filter(is_free, islice(_in_turn, len(BELOW_OUTGOING))), count))
    if len(found) < count:
        raise FailedPrecondition(f"{count} free ports are wanted, and there are {len(found)}", reason="PORT_IN_USE")
    return found


def stays_on_this_machine(target: str) -> bool:
    """Whether all addresses of gRPC's `target` are this machine's, as it is written: names are not looked up."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        target = target.removeprefix(scheme)
    hosts = [address.rpartition(":")[0].strip("[]") for address in target.split(",")]
    try:
        return all(host == "localhost" or ipaddress.ip_address(host).is_loopback for host in hosts)
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether every address of this name is of this machine alone. Raises FailedPrecondition for an unknown name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise FailedPrecondition(f"--host {host}: no such address ({error})", reason="BAD_HOST") from error
    return all(ipaddress.ip_address(address).is_loopback for address in found)
