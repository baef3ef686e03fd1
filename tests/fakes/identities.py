"""Keys and tokens for tests: an identity file with a few callers, and an issuer with a key set."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tokenwire.identity_file import hash_of, new_key

ISSUER, AUDIENCE = "https://issuer.test", "tokenwire"
MODEL = "words"


@dataclass
class Callers:
    """An identity file: alice may do what she likes with priority up to 10, bob has one other model, root is admin."""

    path: Path
    keys: dict[str, str] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=lambda: {"keys": [], "certificates": [], "tenants": {}})

    @classmethod
    def write(cls, path: Path) -> "Callers":
        callers = cls(path)
        callers.add("alice", max_priority=10)
        callers.add("bob", models=["other"])
        callers.add("root", admin=True, max_priority=100)
        callers.add("front", tenant="*", max_priority=100)
        callers.add("late", expires="2020-01-01T00:00:00+00:00")
        return callers

    def add(self, name: str, **fields: Any) -> str:
        self.keys[name] = new_key()
        self.whole["keys"].append({"name": name, "tenant": name, "sha256": hash_of(self.keys[name]), **fields})
        self.save()
        return self.keys[name]

    def save(self) -> None:
        self.path.write_text(json.dumps(self.whole))

    def header(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}


class Issuer:
    """Signs tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, Any] = {}
        self.add("one", rsa.generate_private_key(65537, 2048))

    def add(self, key_id: str, key: Any) -> None:
        self.keys[key_id] = key
        self.save()

    def remove(self, key_id: str) -> None:
        del self.keys[key_id]
        self.save()

    def add_ec(self, key_id: str) -> None:
        self.add(key_id, ec.generate_private_key(ec.SECP256R1()))

    def add_ed(self, key_id: str) -> None:
        self.add(key_id, ed25519.Ed25519PrivateKey.generate())

    @property
    def key_set(self) -> dict[str, Any]:
        return {"keys": [{**public_jwk(key), "kid": key_id} for key_id, key in self.keys.items()]}

    def save(self) -> None:
        self.path.write_text(json.dumps(self.key_set))

    def settings(self) -> dict[str, str]:
        return {"jwt_jwks": str(self.path), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}

    def token(
        self, *, key_id: str = "one", algorithm: str = "RS256", key: Any = None, header: Any = None, **claims: Any
    ) -> str:
        """A good one, unless told otherwise; a claim of None is left out."""
        now = time.time()
        values = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "iat": now, "sub": "carol", **claims}
        given = {name: value for name, value in values.items() if value is not None}
        headers = {"kid": key_id} if header is None else header
        return jwt.encode(given, self.keys[key_id] if key is None else key, algorithm, headers)


def public_jwk(key: Any) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm: Any = jwt.algorithms.RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = jwt.algorithms.ECAlgorithm
    else:
        algorithm = jwt.algorithms.OKPAlgorithm
    found: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return found
