"""Which tiers there are below: fixed addresses, names resolved again and again, files, what a control plane tells.

Tells its listener the whole list whenever it has changed. What fails keeps the addresses it gave last, so that a DNS
outage takes no replica away. Does not know what a replica is.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from tokenwire.addresses import join_host_port
from tokenwire.errors import TokenwireError
from tokenwire.logs import fields
from tokenwire.routing.targets import AddressTarget, DnsTarget, FileTarget, Target, XdsTarget, split_address
from tokenwire.routing.xds_source import XdsSource
from tokenwire.tasks import cancel_and_wait
from tokenwire.tls import ClientTls

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**20

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From host and port to all `host:port` there are; raises OSError."""


async def resolve_all(host: str, port: int) -> list[str]:
    """Every address of a name, of one family: a machine with addresses of two would be two replicas. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    family = found[0][0]
    return [join_host_port(str(info[4][0]), port) for info in found if info[0] is family]


class Source(Protocol):
    """Where addresses come from."""

    async def read(self) -> Sequence[str]:
        """The addresses now. Raises OSError, ValueError or TokenwireError with a message for people."""

    async def close(self) -> None:
        """Let go of what reading takes."""


class Resolved:
    """The addresses of a name."""

    def __init__(self, target: DnsTarget, resolve: Resolve) -> None:
        self._target = target
        self._resolve = resolve

    async def read(self) -> Sequence[str]:
        """As Source says."""
        return await self._resolve(self._target.host, self._target.port)

    async def close(self) -> None:
        """Nothing is held."""


class Listed:
    """The lines of a file, read when it has changed; blank ones and those that begin with # do not count."""

    def __init__(self, target: FileTarget) -> None:
        self._path = target.path
        self._stamp: tuple[int, ...] = ()
        self._addresses: list[str] = []

    async def read(self) -> Sequence[str]:
        """As Source says. A file with one bad line, or that is too large, gives nothing."""
        return await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> list[str]:
        stat = os.stat(self._path)
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            with open(self._path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise ValueError(f"{self._path} is larger than {MAX_FILE_BYTES} bytes")
            self._addresses = _addresses_of(content.decode("utf-8-sig"))
            self._stamp = stamp
        return self._addresses


class Discovery:
    """Follows all targets. `start`, then `close`."""

    def __init__(
        self,
        targets: Sequence[Target],
        on_addresses: Callable[[Sequence[str]], None],
        *,
        interval_s: float,
        resolve: Resolve = resolve_all,
        tls: ClientTls | None = None,
    ) -> None:
        """`on_addresses` gets every address there is, each once, first the fixed ones and then whenever it changed.

        Where it raises a TokenwireError, `start` does; what is told later is told again after `interval_s`.

        `tls`: how the tiers are called. Raises FailedPrecondition for an xds: target that cannot be followed here.
        """
        self.problems: dict[Target, str] = {}
        """Why a target's addresses may be out of date."""
        self._on_addresses = on_addresses
        self._interval_s = interval_s
        self._sources: dict[Target, Source] = {}
        self._found: dict[Target, Sequence[str]] = {}
        self._told: list[str] = []
        self._untold = ""
        """Why `on_addresses` did not take what it was told last; empty when it did."""
        self._task: asyncio.Task[None] | None = None
        for target in targets:
            self._found[target] = [target.address] if isinstance(target, AddressTarget) else []
            if isinstance(target, DnsTarget):
                self._sources[target] = Resolved(target, resolve)
            elif isinstance(target, FileTarget):
                self._sources[target] = Listed(target)
            elif isinstance(target, XdsTarget):
                self._sources[target] = XdsSource(target.name, tls)

    def start(self) -> None:
        """Tell the fixed addresses now, and begin to follow the rest."""
        self._tell()
        if self._sources:
            self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Follow no longer."""
        if self._task is not None:
            await cancel_and_wait(self._task)
        await asyncio.gather(*(source.close() for source in self._sources.values()))

    def problem(self) -> str:
        """Why the list may be wrong, for people; empty when nothing is known to be."""
        problems = [f"{target}: {problem}" for target, problem in self.problems.items()]
        return "; ".join([*problems, *filter(None, [self._untold])])

    async def _follow(self) -> None:
        while True:
            await asyncio.gather(*(self._read(target, source) for target, source in self._sources.items()))
            try:
                self._tell()
                self._untold = ""
            except TokenwireError as error:
                problem = f"the tiers found cannot be used ({error})"
                if problem != self._untold:
                    log.warning("tiers below cannot be used", extra=fields(error=str(error), kept=len(self._told)))
                self._untold = problem
            await asyncio.sleep(self._interval_s)

    async def _read(self, target: Target, source: Source) -> None:
        try:
            self._found[target] = sorted(await source.read())
        except (OSError, ValueError, TokenwireError) as error:
            problem = str(error)
            if self.problems.get(target) != problem:
                kept = len(self._found[target])
                log.warning("tiers below not found", extra=fields(source=str(target), error=problem, kept=kept))
            self.problems[target] = problem
        else:
            self.problems.pop(target, None)

    def _tell(self) -> None:
        addresses = list(dict.fromkeys(address for found in self._found.values() for address in found))
        if addresses != self._told:
            self._on_addresses(addresses)
            self._told = addresses


def _addresses_of(text: str) -> list[str]:
    found: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        address = line.strip()
        if not address or address.startswith("#"):
            continue
        try:
            split_address(address)
        except ValueError:
            raise ValueError(f"line {number}: {address[:80]!r} is not host:port") from None
        found.append(address)
    return found
