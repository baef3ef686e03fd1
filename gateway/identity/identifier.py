"""Who calls: from an Authorization header or a client certificate to a proof. Knows no protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.identity.identity import ANYBODY, Identity, Proof
from gateway.identity.keyring import Keyring
from gateway.identity.tokens import Tokens
from tokenwire.errors import TokenwireError, Unauthenticated

NO_CREDENTIALS = "this server asks who calls: send `Authorization: Bearer` with an API key or a token"


@dataclass(frozen=True, slots=True)
class Unasked:
    """The proof of a caller who came while nobody was asked. It lapses as soon as callers are."""

    keyring: Keyring

    def identity(self) -> Identity:
        """As Proof says."""
        if self.keyring.asks:
            raise Unauthenticated(NO_CREDENTIALS, reason="NO_CREDENTIALS")
        return ANYBODY.who


class Identifier:
    """Tells callers apart. At least one of its two sources is there."""

    def __init__(self, keyring: Keyring | None, tokens: Tokens | None, on_refused: Callable[[str], None]) -> None:
        """`on_refused`: told the reason of each refusal."""
        self._keyring = keyring
        self._tokens = tokens
        self._on_refused = on_refused

    @property
    def asks(self) -> bool:
        """Whether callers are asked: a file of limits alone may get its first key at any time."""
        return self._tokens is not None or (self._keyring is not None and self._keyring.asks)

    async def identify(self, authorizations: Sequence[str], certificate_names: Callable[[], Sequence[str]]) -> Proof:
        """The proof that a caller gives. Raises Unauthenticated.

        `authorizations`: the values of every such header; one that is given is judged, whatever else there is.
        `certificate_names`: asked only where certificates count and no header came.
        """
        if self._keyring is not None and not self.asks:
            return Unasked(self._keyring)
        try:
            if authorizations:
                return await self._by_header(authorizations)
            if self._keyring is not None and self._keyring.has_certificates and (names := certificate_names()):
                return self._keyring.certificate(names)
            raise Unauthenticated(NO_CREDENTIALS, reason="NO_CREDENTIALS")
        except TokenwireError as error:
            self._on_refused(error.reason.lower())
            raise

    async def _by_header(self, authorizations: Sequence[str]) -> Proof:
        scheme, _, credentials = authorizations[0].strip().partition(" ")
        credentials = credentials.strip()
        if len(authorizations) > 1 or scheme.lower() != "bearer" or not credentials or " " in credentials:
            message = "the Authorization header cannot be read: send one, `Bearer` and an API key or a token"
            raise Unauthenticated(message, reason="MALFORMED_CREDENTIALS")
        if self._tokens is not None and (self._keyring is None or credentials.count(".") == 2):
            return await self._tokens.check(credentials)
        assert self._keyring is not None, "an identifier has at least one source"
        return self._keyring.key(credentials)
