"""The public keys that tokens are signed with: a JSON Web Key Set from a file or a URL, read again as keys rotate.

Symmetric keys are left out: whoever could check a token with one could make it. Source: RFC 7517. Knows no tokens.
"""

import asyncio
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from tokenwire.addresses import is_loopback
from tokenwire.errors import FailedPrecondition, TokenwireError
from tokenwire.tls import WatchedFiles

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA",
})  # fmt: skip
"""All of public keys."""
BY_TYPE = {
    "RSA": frozenset(name for name in ALGORITHMS if name.startswith(("RS", "PS"))),
    "EC": frozenset(name for name in ALGORITHMS if name.startswith("ES")),
    "OKP": frozenset({"EdDSA"}),
}
"""What a key of each type can check."""
REFRESH_S = 300.0
"""How often a URL is read again."""
PAUSE_S = 10.0
"""Least time between two readings that unknown keys ask for, so that made-up ones cost nothing."""
FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 2**20
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What checks a signature, and the algorithms that a token may say it was signed with."""

    key: Any
    algorithms: frozenset[str]


class KeySet:
    """Keys by id."""

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic, pause_s: float = PAUSE_S) -> None:
        """`source`: a path, or a URL: https, or http on this machine. Raises FailedPrecondition, for a file at once."""
        self.generation = 0
        """Grows with every change: what was checked with older keys must be checked again."""
        self._source = source
        self._clock = clock
        self._pause_s = pause_s
        self._keys: dict[str, PublicKey] = {}
        self._text = b""
        self._reading: asyncio.Task[None] | None = None
        self._is_url = source.startswith(("http://", "https://"))
        self._read_s = self._looked_s = float("-inf")
        if self._is_url:
            parts = urlsplit(source)
            if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
                raise FailedPrecondition(f"{source}: keys are fetched over https", reason="JWKS")
            return
        self._watched = WatchedFiles((source,))
        try:
            self._take(Path(source).read_bytes())
        except (OSError, ValueError) as error:
            raise FailedPrecondition(f"key set {source}: {error}", reason="JWKS") from None

    async def find(self, key_id: str | None) -> PublicKey | None:
        """The key of this id, or the only one where a token names none; read again before saying that there is none."""
        await self.follow()
        found = self._known(key_id)
        if found is None and self._may_read():
            await self._read()
            found = self._known(key_id)
        return found

    def _known(self, key_id: str | None) -> PublicKey | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    async def follow(self) -> None:
        """Have what there is: a changed file at once, a URL that is due behind the calls that ask."""
        now_s = self._clock()
        if self._is_url:
            if not self._keys and self._may_read():
                await self._read()
            elif now_s - self._read_s >= REFRESH_S:
                self._start_reading()
        elif now_s - self._looked_s >= LOOK_AGAIN_S:
            self._looked_s = now_s
            if self._watched.changed():
                await self._read()

    def _may_read(self) -> bool:
        """Whether a caller may wait for a reading: one is going on, or the last was long enough ago."""
        going_on = self._reading is not None and not self._reading.done()
        return going_on or self._clock() - self._read_s >= self._pause_s

    def _start_reading(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._read_s = self._clock()
            self._reading = asyncio.get_running_loop().create_task(self._fetch())
        return self._reading

    async def _read(self) -> None:
        """One reading, however many wait for it. A caller that goes leaves it to the others."""
        await asyncio.shield(self._start_reading())

    async def _fetch(self) -> None:
        try:
            self._take(await asyncio.to_thread(self._load))
        except (OSError, ValueError, RecursionError, http.client.HTTPException, TokenwireError) as error:
            log.warning("the key set at %s cannot be read, the old one stays: %s", self._source, error)

    def _load(self) -> bytes:
        if not self._is_url:
            return Path(self._source).read_bytes()
        with _OPENER.open(self._source, timeout=FETCH_TIMEOUT_S) as answer:
            body: bytes = answer.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise ValueError(f"the answer is larger than {MAX_BYTES} bytes")
        return body

    def _take(self, text: bytes) -> None:
        """Take over a whole set. Raises ValueError."""
        whole = json.loads(text)
        if not isinstance(whole, dict) or not isinstance(whole.get("keys"), list):
            raise ValueError('is no key set: a JSON object with "keys" is one')
        keys: dict[str, PublicKey] = {}
        for index, value in enumerate(whole["keys"]):
            if (key := _public_key(value)) is not None:
                keys[str(value.get("kid", f"\0{index}"))] = key
        if not keys:
            raise ValueError("holds no public key that can check a signature")
        self._keys = keys
        if text != self._text:
            self._text = text
            self.generation += 1
            log.info("the key set has %d keys", len(keys))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where the settings say."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none: it is an error then."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _public_key(value: Any) -> PublicKey | None:
    """A key that checks signatures with some of ALGORITHMS; None for any other."""
    if not isinstance(value, dict) or value.get("kty") not in BY_TYPE or value.get("use", "sig") != "sig":
        return None
    of_type = BY_TYPE[value["kty"]]
    try:
        key = jwt.PyJWK({name: part for name, part in value.items() if name != "d"})
    except jwt.PyJWTError:
        return None
    named = frozenset({key.algorithm_name}) if value.get("alg") or value["kty"] != "RSA" else of_type
    return PublicKey(key.key, named) if named <= of_type else None
