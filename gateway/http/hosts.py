"""By which names a gateway is called that lets in everybody on its machine.

A page of any origin can have its own name resolve to 127.0.0.1 (DNS rebinding): for the browser, what answers there is
then that page's own server. The `Host` field still has the page's name. Knows no connections.
"""

import re

from gateway.identity.identifier import Identifier
from gateway.settings import GatewaySettings
from tokenwire.addresses import is_loopback
from tokenwire.errors import PermissionDenied

LOOPBACK = r"localhost|127(\.[0-9]{1,3}){3}|\[::1\]"


class LoopbackHosts:
    """Refuses requests for other names, while nobody is asked who they are."""

    def __init__(self, settings: GatewaySettings, identifier: Identifier | None) -> None:
        """`identifier`: None: nobody is asked by key or token. Raises FailedPrecondition for a host that is not there.

        Over TLS a browser finds out itself that the certificate is of another name.
        """
        trusted = settings.insecure or settings.tls is not None
        self._guards = not trusted and is_loopback(settings.host)
        names = f"({LOOPBACK}|{re.escape(settings.host)})(:[0-9]{{1,5}})?"
        self._allowed = re.compile(names.encode(), re.IGNORECASE)
        self._identifier = identifier
        self._ways_to_ask = settings.ways_to_ask

    def refuse(self, host: bytes) -> None:
        """Raise PermissionDenied for a `Host` field that is not of this machine. Any port will do."""
        asks = self._identifier is not None and self._identifier.asks
        if not self._guards or asks or self._allowed.fullmatch(host):
            return
        shown = host[:80].decode("latin-1")
        message = (
            f"Host {shown!r} is not allowed: a gateway on the loopback that asks nobody who calls is localhost, 127.x"
        )
        message += f" or [::1]; {self._ways_to_ask}, or add --insecure to be called by any name"
        raise PermissionDenied(message, reason="HOST_NOT_ALLOWED")
