"""API keys and names in certificates, from the identity file, which is read again when it changes. Knows no calls."""

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.identity.identity import Identity
from tokenwire.errors import FailedPrecondition, InvalidRequest, Unauthenticated
from tokenwire.identity_file import Grant, IdentityFile, TenantLimits, hash_of, read_identity_file
from tokenwire.logs import fields
from tokenwire.tls import WatchedFiles

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
"""How often the file is looked at, at most."""
PREFIX = 8
"""Hexadecimal digits of a hash by which it is found; the rest is compared in constant time."""

UNKNOWN_KEY = "the API key is not known here"


class Keyring:
    """Who is in the file."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        """Raises FailedPrecondition when the file cannot be used. `now`: Unix time."""
        self._path = path
        self._clock = clock
        self._now = now
        self._watched = WatchedFiles((str(path),))
        self._looked_s = clock()
        self._asks = False
        try:
            self._take(read_identity_file(path))
        except (OSError, InvalidRequest) as error:
            raise FailedPrecondition(f"identity file: {error}", reason="IDENTITY_FILE") from None

    @property
    def asks(self) -> bool:
        """Whether callers are asked who they are: the file says so, or has said so before.

        What is left out of a file later lets nobody in: that takes a restart.
        """
        self.refresh()
        return self._asks

    @property
    def has_certificates(self) -> bool:
        """Whether certificates say who calls."""
        return bool(self._file.certificates)

    @property
    def tenants(self) -> dict[str, TenantLimits]:
        """What tenants may use, where that is not the default."""
        self.refresh()
        return self._file.tenants

    def key(self, key: str) -> "KeyProof":
        """The proof that a key is. Raises Unauthenticated."""
        proof = KeyProof(self, hash_of(key))
        proof.identity()
        return proof

    def certificate(self, names: Sequence[str]) -> "CertificateProof":
        """The proof that a certificate with these names is. Raises Unauthenticated."""
        proof = CertificateProof(self, tuple(names))
        proof.identity()
        return proof

    def by_hash(self, digest: str) -> Identity:
        """Who has the key of this hash. Raises Unauthenticated."""
        self.refresh()
        found: Grant | None = None
        for known, grant in self._by_prefix.get(digest[:PREFIX], ()):
            if hmac.compare_digest(known, digest):
                found = grant
        if found is None:
            raise Unauthenticated(UNKNOWN_KEY, reason="INVALID_API_KEY")
        return self._current(found, "API key")

    def by_names(self, names: Sequence[str]) -> Identity:
        """Who has a certificate with one of these names. Raises Unauthenticated."""
        self.refresh()
        for name in names:
            if (grant := self._file.certificates.get(name)) is not None:
                return self._current(grant, "entry of this certificate")
        raise Unauthenticated("no name in the client certificate is known here", reason="UNKNOWN_CERTIFICATE")

    def refresh(self) -> None:
        """Read the file again if it is time to look, and it has changed. One that cannot be used changes nothing."""
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        if not self._watched.changed():
            return
        try:
            self._take(read_identity_file(self._path))
        except (OSError, InvalidRequest) as error:
            log.error("the changed identity file cannot be used, the old one stays: %s", error)
            return
        counts = fields(keys=len(self._file.keys), certificates=len(self._file.certificates))
        log.info("the identity file was read again", extra=counts)

    def _take(self, file: IdentityFile) -> None:
        self._file = file
        self._asks = self._asks or file.asks
        self._by_prefix: dict[str, list[tuple[str, Grant]]] = {}
        for digest, grant in file.keys.items():
            self._by_prefix.setdefault(digest[:PREFIX], []).append((digest, grant))

    def _current(self, grant: Grant, what: str) -> Identity:
        if grant.expires_s is not None and grant.expires_s <= self._now():
            raise Unauthenticated(f"the {what} has expired", reason="EXPIRED_CREDENTIALS")
        return Identity.of(grant)


@dataclass(frozen=True, slots=True)
class KeyProof:
    """A key was shown; its hash is kept. What the file says of it now is what holds."""

    keyring: Keyring
    digest: str

    def identity(self) -> Identity:
        """As Proof says."""
        return self.keyring.by_hash(self.digest)

    def __repr__(self) -> str:
        return "KeyProof(…)"


@dataclass(frozen=True, slots=True)
class CertificateProof:
    """A certificate was shown in the TLS handshake."""

    keyring: Keyring
    names: tuple[str, ...]

    def identity(self) -> Identity:
        """As Proof says."""
        return self.keyring.by_names(self.names)
