"""Lets HTTP requests in whose caller is known. Covers every path; a few answer everybody. Knows nobody's rights."""

from collections.abc import Collection, Sequence
from itertools import chain

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.connection import connection_of
from gateway.http.errors import error_response
from gateway.identity.certificates import names_by_kind
from gateway.identity.identifier import Identifier
from gateway.identity.identity import CURRENT, NOBODY
from tokenwire.errors import TokenwireError


class IdentityGate:
    """ASGI middleware, behind the one that gives request ids."""

    def __init__(self, app: ASGIApp, identifier: Identifier, open_paths: Collection[str]) -> None:
        """`open_paths`: answer everybody."""
        self._app = app
        self._identifier = identifier
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the caller's proof, or answer 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in self._open and self._identifier.asks:
            CURRENT.set(NOBODY)
        else:
            given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
            try:
                proof = await self._identifier.identify(given, lambda: names_of(scope))
            except TokenwireError as error:
                await error_response(error)(scope, receive, send)
                return
            CURRENT.set(proof)
        await self._app(scope, receive, send)


def names_of(scope: Scope) -> Sequence[str]:
    """The URIs, DNS names and common name of the client's certificate; nothing where it showed none."""
    return list(chain.from_iterable(names_by_kind(connection_of(scope).certificate).values()))
