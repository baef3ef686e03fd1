"""What a request's head must say to be let in: its version, and whom it asks. Knows no connections and no paths."""

import re

from tokenwire.errors import InvalidRequest

VERSIONS = ("1.0", "1.1")
TARGET = re.compile(rb"(?:https?://([^/?#]+))?/.*", re.IGNORECASE | re.DOTALL)
"""A path, or a whole address (RFC 9112, 3.2)."""

Headers = list[tuple[bytes, bytes]]


def host_asked_for(version: str, target: bytes, headers: Headers) -> bytes:
    """The host that a head asks for, empty where HTTP/1.0 names none. Raises InvalidRequest for what is no such head.

    A target that is a whole address is what counts, whatever the `Host` field says, which then says the same
    (RFC 9112, 3.2.2). `headers`, with names in small letters, is changed so.
    """
    if version not in VERSIONS:
        message = f"HTTP/{version} is not answered here: send HTTP/1.1"
        raise InvalidRequest(message, reason="UNSUPPORTED_HTTP_VERSION")
    if version == "1.0" and any(name == b"transfer-encoding" for name, _ in headers):
        raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding: send Content-Length", reason="MALFORMED_HTTP")
    found = TARGET.fullmatch(target)
    if found is None:
        message = "the request's target is neither a path nor an address with http:// and a path"
        raise InvalidRequest(message, reason="MALFORMED_HTTP")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise InvalidRequest(f"the request has {len(hosts)} Host fields: one is needed")
    if found[1] is None:
        return hosts[0] if hosts else b""
    headers[:] = [(b"host", found[1]), *((name, value) for name, value in headers if name != b"host")]
    return found[1]
