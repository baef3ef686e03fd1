"""JSON Web Tokens: signature, issuer, audience and times checked, claims read as what the caller may.

A token that was checked is remembered by its hash until it ends, so that the next request costs a hash. Sources: RFC
7519, RFC 8725. Knows no calls.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from gateway.identity.identity import Identity
from gateway.identity.key_set import KeySet
from tokenwire.errors import InvalidRequest, TokenwireError, Unauthenticated
from tokenwire.identity_file import models_of
from tokenwire.requests import MAX_PRIORITY, RequestContext

MAX_REMEMBERED = 4096
MAX_TOKEN_CHARS = 16_384
REQUIRED = ("exp", "iss", "aud")

EXPIRED = "the token has expired: get a new one"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token must be. `leeway_s`: how far clocks may differ."""

    issuer: str
    audience: str
    leeway_s: float
    tenant_claim: str
    models_claim: str
    priority_claim: str


@dataclass(frozen=True, slots=True)
class TokenProof:
    """A checked token. It lapses when it expires, also under a session that it opened."""

    who: Identity
    ends_s: float
    """Unix time, the leeway included."""
    now: Callable[[], float]

    def identity(self) -> Identity:
        """As Proof says."""
        if self.now() >= self.ends_s:
            raise Unauthenticated(EXPIRED, reason="TOKEN_EXPIRED")
        return self.who


class Tokens:
    """Checks tokens."""

    def __init__(self, keys: KeySet, rules: Rules, *, now: Callable[[], float] = time.time) -> None:
        """`now`: Unix time."""
        self._keys = keys
        self._rules = rules
        self._now = now
        self._remembered: OrderedDict[bytes, TokenProof] = OrderedDict()
        self._generation = 0
        """Of the keys that the remembered ones were checked with."""

    async def check(self, token: str) -> TokenProof:
        """The proof that a token is. Raises Unauthenticated; no message holds a piece of it."""
        if len(token) > MAX_TOKEN_CHARS:
            raise _invalid("is too long")
        digest = hashlib.sha256(token.encode()).digest()
        await self._keys.follow()
        if self._keys.generation != self._generation:
            self._generation = self._keys.generation
            self._remembered.clear()
        proof = self._remembered.get(digest)
        if proof is None:
            proof = await self._checked(token)
            self._remembered[digest] = proof
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        proof.identity()
        return proof

    async def _checked(self, token: str) -> TokenProof:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise _invalid("cannot be read") from None
        key = await self._keys.find(header.get("kid"))
        if key is None:
            raise _invalid("is signed with a key that is not known here")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in key.algorithms:
            raise _invalid(f"is not signed as its key allows ({', '.join(sorted(key.algorithms))})")
        rules = self._rules
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=rules.audience,
                issuer=rules.issuer,
                options={"require": list(REQUIRED), "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise _invalid(PROBLEMS.get(type(error), "is not valid")) from None
        self._check_times(claims)
        return TokenProof(self._identity(claims), claims["exp"] + rules.leeway_s, self._now)

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        """PyJWT's clock cannot be set, and its leeway knows whole seconds alone."""
        for name in ("exp", "nbf", "iat"):
            if name in claims and not _is_number(claims[name]):
                raise _invalid(f"has no number as {name}")
        latest_s = self._now() + self._rules.leeway_s
        if any(claims.get(name, latest_s) > latest_s for name in ("nbf", "iat")):
            raise _invalid("is not valid yet")

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        rules = self._rules
        tenant = claims.get(rules.tenant_claim, claims.get("sub"))
        if not isinstance(tenant, str) or not tenant or RequestContext("", tenant=tenant).violations():
            raise _invalid(f"names no tenant: neither {rules.tenant_claim} nor sub is a text that a tenant may be")
        if tenant == "*":
            raise _invalid("names every tenant")
        priority = claims.get(rules.priority_claim, 0)
        if type(priority) is not int or abs(priority) > MAX_PRIORITY:
            raise _invalid(f"has no priority as {rules.priority_claim}")
        try:
            models = models_of(claims.get(rules.models_claim), rules.models_claim)
        except InvalidRequest:
            raise _invalid(f"has no list of names as {rules.models_claim}") from None
        return Identity(tenant, models, priority, admin=False)


PROBLEMS: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "has a signature that does not fit",
    jwt.InvalidAudienceError: "is for another audience",
    jwt.InvalidIssuerError: "is of another issuer",
    jwt.MissingRequiredClaimError: f"lacks one of {', '.join(REQUIRED)}",
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _invalid(problem: str) -> TokenwireError:
    return Unauthenticated(f"the token {problem}", reason="INVALID_TOKEN")
