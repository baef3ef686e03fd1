"""How many files and sockets this process may have open. Does not know what they are for."""

import logging
import resource

from tokenwire.logs import fields

log = logging.getLogger(__name__)

RESERVED_FILES = 256
"""Left for everything but clients' HTTP connections: gRPC's sockets, the tiers below, files, logs."""


def raise_limit() -> None:
    """Raise what is allowed to as much as the system grants without asking: many set it low for programs of old."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a system may grant less than it says
        log.warning("the limit on open files stays at %d: %s", soft, error)


def connections_within(wanted: int) -> int:
    """So many connections, or as many as the limit on open files leaves room for, which is told in the log then."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    most = max(1, limit - min(RESERVED_FILES, limit // 2))
    if wanted <= most:
        return wanted
    log.warning(
        "fewer HTTP connections than max_connections: raise the limit on open files (ulimit -n)",
        extra=fields(max_connections=wanted, open_files=limit, allowed=most),
    )
    return most
