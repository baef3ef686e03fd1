"""Addresses to listen on and to call: written out, tried, checked, and told apart. Knows no server."""

import ipaddress
import random
import re
import socket
from itertools import cycle, islice

from tokenwire.errors import FailedPrecondition, InvalidRequest

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


PATHS = ("unix:", "unix-abstract:", "vsock:", "xds:")
"""Schemes of gRPC's targets behind which no host and port stand."""
AUTHORITY = re.compile(r"dns://[^/]*/|dns:|ipv4:|ipv6:")
HOST_AND_PORT = re.compile(
    r"(?:\[[^\[\]]+\]|[^\[\]:/]+)(?::([0-9]{1,5}))?|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*"
)


def refuse_bad_target(target: object) -> None:
    """Raise InvalidRequest for what is no target of gRPC, or has a port that there is not (gRPC takes any)."""
    allowed = "host:port, of a port from 1 to 65535, or another target of gRPC, such as unix:path or dns:///host:port"
    if not isinstance(target, str):
        raise InvalidRequest.of("target", f"{target!r:.80} is not allowed: {allowed}")
    if target.startswith(PATHS):
        return
    scheme = AUTHORITY.match(target)
    for address in target[scheme.end() if scheme else 0 :].split(","):
        found = HOST_AND_PORT.fullmatch(address)
        if (
            found is None
            or not address.isprintable()
            or " " in address
            or found[1]
            and not 1 <= int(found[1]) <= 65_535
        ):
            raise InvalidRequest.of("target", f"{target!r:.80} is not allowed: {allowed}")


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
