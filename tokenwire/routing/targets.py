"""How the tiers below are named in the setting: addresses, DNS names, files to read, names that a control plane knows.

Parses and checks, no more.
"""

import re
from dataclasses import dataclass

ALLOWED = (
    "host:port, dns:host:port, file:/path or xds:///name, several separated by commas and each once, such as "
    "127.0.0.1:50053, dns:///model-headless:50053, file:/etc/tokenwire/model-targets or xds:///model"
)


@dataclass(frozen=True, slots=True)
class AddressTarget:
    """One tier at a fixed place."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True, slots=True)
class DnsTarget:
    """One tier at each address that a name resolves to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"dns:{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FileTarget:
    """One tier for each line of a file."""

    path: str

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class XdsTarget:
    """One tier at each endpoint that gRPC's control plane (xDS) gives for a name."""

    name: str

    def __str__(self) -> str:
        return f"xds:///{self.name}"


XDS_NAME = re.compile(r"[\w.:-]+(/[\w.:-]+)*", re.ASCII)

Target = AddressTarget | DnsTarget | FileTarget | XdsTarget


def parse_targets(text: str) -> tuple[Target, ...]:
    """`a:1,dns:b:2,file:/c,xds:///d` as values. Raises ValueError saying what is allowed."""
    targets = tuple(_target(part.strip()) for part in text.split(","))
    if len(set(targets)) != len(targets):
        raise ValueError(ALLOWED)
    return targets


def split_address(text: str) -> tuple[str, int]:
    """`host:port`, an IPv6 address in brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or set(host) & set("/ \t,"):
        raise ValueError(ALLOWED)
    if not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ValueError(ALLOWED)
    return host, int(port)


def _target(text: str) -> Target:
    scheme, found, rest = text.partition(":")
    if found and scheme == "dns":
        if rest.startswith("//"):
            server, _, rest = rest[2:].partition("/")
            if server:
                raise ValueError(f"dns:///host:port without a DNS server of its own, not {text}")
        return DnsTarget(*split_address(rest))
    if found and scheme == "file":
        path = rest[2:] if rest.startswith("//") else rest
        if not path:
            raise ValueError(ALLOWED)
        return FileTarget(path)
    if found and scheme == "xds":
        name = rest.removeprefix("///")
        if name == rest or not XDS_NAME.fullmatch(name):
            raise ValueError(f"xds:///name without an authority of its own, not {text}")
        return XdsTarget(name)
    split_address(text)
    return AddressTarget(text)


def targets_of(text: str) -> str:
    """Check a list of targets; returns it in one spelling. Raises ValueError saying what is allowed."""
    return ",".join(map(str, parse_targets(text)))
