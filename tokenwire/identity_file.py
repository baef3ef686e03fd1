"""The file that says who may call a gateway, and how much: read strictly, and written by `tokenwire keys`.

    {"keys": [{"name": "alice-laptop", "sha256": "…", "tenant": "alice", "models": ["smollm2-135m-instruct"],
               "max_priority": 10, "admin": false, "expires": "2027-01-01T00:00:00+00:00"}],
     "certificates": [{"name": "spiffe://example/alice", "tenant": "alice"}],
     "tenants": {"alice": {"requests_per_s": 5, "tokens_per_min": 100000, "max_streams": 8}}}

Only hashes of keys are kept. A key is 256 random bits, which nobody guesses, so that one round of SHA-256 is enough.
Knows neither calls nor how limits are held.
"""

import datetime
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwire.errors import InvalidRequest
from tokenwire.requests import MAX_PRIORITY, RequestContext

ANY_TENANT = "*"
"""Instead of a tenant: the caller names it, a trusted front that speaks for many."""
KEY_PREFIX = "tw-"
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_FILE_BYTES = 64 * 2**20
SECTIONS = ("keys", "certificates", "tenants")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may. `models`: names of models and adapters; None: all. `admin`: metrics and channelz too."""

    name: str
    tenant: str
    models: frozenset[str] | None = None
    max_priority: int = 0
    admin: bool = False
    expires_s: float | None = None
    """Unix time; None: never."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use; 0: without limit, None: the gateway's default."""

    requests_per_s: float | None = None
    tokens_per_min: float | None = None
    max_streams: int | None = None


@dataclass(frozen=True, slots=True)
class IdentityFile:
    """The whole file."""

    keys: dict[str, Grant]
    """By SHA-256, in hexadecimal."""
    certificates: dict[str, Grant]
    """By a name in the certificate: a DNS name, a URI, or the common name."""
    tenants: dict[str, TenantLimits]
    asks: bool
    """Whether callers are asked who they are: it has keys or certificates, if only empty lists of them."""


def new_key() -> str:
    """A key that nobody has; shown once."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_identity_file(path: Path) -> IdentityFile:
    """Read and check. Raises InvalidRequest naming the file and the entry that is wrong, and OSError."""
    return parsed(_read_json(path), str(path))


def add_key(path: Path, entry: dict[str, Any]) -> None:
    """Add an entry of `keys` to the file, which is made where it is not there. Raises InvalidRequest and OSError."""
    whole = _read_json(path) if path.exists() else {}
    keys = whole.setdefault("keys", [])
    parsed(whole, str(path))
    if any(known["name"] == entry["name"] for known in keys):
        raise InvalidRequest(f"{path} has a key named {entry['name']!r}: give another name, or revoke that one")
    keys.append(entry)
    parsed(whole, str(path))
    _write_json(path, whole)


def remove_key(path: Path, name: str) -> None:
    """Take a key out. Raises InvalidRequest when there is none of that name, and OSError."""
    whole = _read_json(path)
    parsed(whole, str(path))
    kept = [known for known in whole.get("keys", []) if known["name"] != name]
    if len(kept) == len(whole.get("keys", [])):
        raise InvalidRequest(f"{path} has no key named {name!r}")
    whole["keys"] = kept
    _write_json(path, whole)


def parsed(whole: Any, where: str) -> IdentityFile:
    """The file's content, checked. Raises InvalidRequest; no message holds a value of `sha256`."""
    if not isinstance(whole, dict):
        raise InvalidRequest(f"{where}: must be a JSON object with {', '.join(SECTIONS)}")
    _refuse_unknown(whole, SECTIONS, where)
    keys: dict[str, Grant] = {}
    names: set[str] = set()
    for place, entry in _entries(whole, "keys", where):
        digest = entry.get("sha256")
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise InvalidRequest(f"{place}.sha256: must be 64 hexadecimal digits, what `tokenwire keys hash` prints")
        grant = _grant(entry, place, ("sha256",))
        if digest in keys or grant.name in names:
            raise InvalidRequest(f"{place}: a key or name that is there already")
        names.add(grant.name)
        keys[digest] = grant
    certificates: dict[str, Grant] = {}
    for place, entry in _entries(whole, "certificates", where):
        grant = _grant(entry, place, ())
        if grant.name in certificates:
            raise InvalidRequest(f"{place}: a name that is there already")
        certificates[grant.name] = grant
    tenants = whole.get("tenants", {})
    if not isinstance(tenants, dict):
        raise InvalidRequest(f"{where}: tenants: must be an object of limits by tenant")
    limits = {name: _limits(entry, f"{where}: tenants[{name!r}]") for name, entry in tenants.items()}
    return IdentityFile(keys, certificates, limits, "keys" in whole or "certificates" in whole)


def _entries(whole: dict[str, Any], section: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    entries = whole.get(section, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(f"{where}: {section}: must be a list of objects")
    return [(f"{where}: {section}[{index}]", entry) for index, entry in enumerate(entries)]


def _grant(entry: dict[str, Any], place: str, more: tuple[str, ...]) -> Grant:
    _refuse_unknown(entry, ("name", "tenant", "models", "max_priority", "admin", "expires", *more), place)
    name, tenant = entry.get("name"), entry.get("tenant")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{place}.name: must be a text")
    if not isinstance(tenant, str) or not tenant or RequestContext("", tenant=tenant).violations():
        raise InvalidRequest(f"{place}.tenant: must be a text that a request may name, not empty")
    priority, admin = entry.get("max_priority", 0), entry.get("admin", False)
    if type(priority) is not int or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(f"{place}.max_priority: must be an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    if not isinstance(admin, bool):
        raise InvalidRequest(f"{place}.admin: must be true or false")
    models = models_of(entry.get("models"), f"{place}.models")
    return Grant(name, tenant, models, priority, admin, _expiry(entry.get("expires"), f"{place}.expires"))


def models_of(value: Any, place: str) -> frozenset[str] | None:
    """A list of names; None, for an absent one, means all. Raises InvalidRequest."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise InvalidRequest(f"{place}: must be a list of names of models")
    return frozenset(value)


def _expiry(value: Any, place: str) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(f"{place}: must be a time with its offset, such as 2027-01-01T00:00:00+00:00")
    return moment.timestamp()


def _limits(entry: Any, place: str) -> TenantLimits:
    fields = ("requests_per_s", "tokens_per_min", "max_streams")
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{place}: must be an object with {', '.join(fields)}")
    _refuse_unknown(entry, fields, place)
    for name, value in entry.items():
        whole = name == "max_streams"
        allowed = "an integer" if whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 <= value < 1e15:
            raise InvalidRequest(f"{place}.{name}: must be {allowed} from 0 on; 0: no limit")
    return TenantLimits(**entry)


def _refuse_unknown(entry: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    for name in entry:
        if name not in known:
            raise InvalidRequest(f"{place}: there is no field {name!r:.60}; known are {', '.join(known)}")


def _read_json(path: Path) -> Any:
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{path}: is not JSON: {error}") from None


def _write_json(path: Path, whole: dict[str, Any]) -> None:
    """Readers see the old file or the new one; a new one is its owner's alone."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(whole, file, indent=2, ensure_ascii=False)
            file.write("\n")
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
