"""Settings: frozen dataclasses, filled once per process from flags and the tier's own environment.

A flag outranks the environment, which outranks the default. An unknown `TOKENWIRE_<TIER>_*` variable or a bad value is
refused with its name, its value and what is allowed. Knows nothing of any one tier's settings.
"""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from tokenwire.errors import FailedPrecondition
from tokenwire.tls import ClientTls, ServerTls

S = TypeVar("S")

SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?$")
"""Names that Kubernetes injects for every service of the namespace; `*_PORT` is told apart by its `tcp://` value."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that is a setting: its default, its line in `--help` and the values it takes."""
    metadata = {"help": help, "choices": tuple(choices), "minimum": minimum, "maximum": maximum, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def endpoint_of(text: str) -> str:
    """`"http://host:port"` or `"https://host:port"`, or nothing; raises ValueError for anything else."""
    found = re.fullmatch(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):([0-9]{1,5})", text)
    if text and (found is None or not 1 <= int(found[1]) <= 65_535):
        raise ValueError("http://host:port or https://host:port, of a port from 1 to 65535")
    return text


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What every tier's server takes."""

    host: str = setting(
        "127.0.0.1", "address to listen on; beyond loopback callers must be asked who they are, or --insecure given"
    )
    port: int = setting(0, "gRPC port; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = setting(0, "Prometheus port; 0 turns it off", minimum=0, maximum=65535)
    insecure: bool = setting(False, "listen beyond loopback without asking who calls")
    tls_certificate: str = setting(
        "", "file with the certificate to show and its chain, PEM, read again when it changes; empty: no TLS"
    )
    tls_key: str = setting("", "file with the certificate's key, PEM")
    tls_client_ca: str = setting(
        "", "file with CAs, PEM; every client must show a certificate of one of them; empty: none is asked for"
    )
    metrics_tls: bool = setting(False, "the metrics port speaks TLS too, and asks for the same certificates")
    drain_timeout_s: float = setting(30.0, "on SIGTERM, seconds to let running requests finish", minimum=0)
    max_connection_age_s: float = setting(
        0.0,
        "seconds, give or take a tenth, after which a connection is told to go, so that clients spread anew over the "
        "processes there are; what runs on it goes on; 0: never, or 300 with several workers",
        minimum=0,
        maximum=86_400,
    )
    max_connection_age_grace_s: float = setting(
        0.0,
        "seconds that what runs may stay on a gRPC connection that was told to go, before it is cut; 0: as many as it "
        "takes",
        minimum=0,
        maximum=86_400,
    )
    max_message_bytes: int = setting(16 * 2**20, "largest gRPC message accepted", minimum=1024)
    trace_endpoint: str = setting(
        "",
        "collector that traces are sent to by OTLP over gRPC, as http://host:4317 or, with TLS, https://host:4317; "
        "empty: nothing is traced",
        parse=endpoint_of,
    )
    trace_ratio: float = setting(
        1.0,
        "part of the traces decided here that are kept; a trusted caller decides itself",
        minimum=0,
        maximum=1,
    )

    @property
    def tls(self) -> ServerTls | None:
        """What the tier's ports show; None: they do not speak TLS. Raises FailedPrecondition for half of it."""
        if not (self.tls_certificate or self.tls_key):
            if self.tls_client_ca or self.metrics_tls:
                given = "--tls-client-ca" if self.tls_client_ca else "--metrics-tls"
                raise FailedPrecondition(f"{given} needs --tls-certificate and --tls-key", reason="TLS_SETTINGS")
            return None
        if not (self.tls_certificate and self.tls_key):
            missing = "--tls-key" if self.tls_certificate else "--tls-certificate"
            raise FailedPrecondition(
                f"TLS needs a certificate and its key: {missing} is missing", reason="TLS_SETTINGS"
            )
        return ServerTls(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def asks_who(self) -> bool:
        """Whether every caller must show who it is."""
        return bool(self.tls_client_ca)

    @property
    def ways_to_ask(self) -> str:
        """What makes `asks_who` true, for people."""
        return "ask for client certificates with --tls-client-ca"


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(ServerSettings):
    """What a tier takes that can run as several processes."""

    workers: int = setting(
        1,
        "processes that share the ports; bounds on concurrent requests hold for each of them",
        minimum=1,
        maximum=256,
    )
    check_invariants: bool = setting(
        False, "every second see that what is counted adds up, and say in the log where it does not: for tests"
    )


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """What a tier takes that calls another one."""

    upstream_tls_ca: str = setting(
        "", 'file with the CAs that the tiers below are checked against, PEM, or "system"; empty: no TLS to them'
    )
    upstream_tls_certificate: str = setting("", "file with the certificate to show to the tiers below, PEM")
    upstream_tls_key: str = setting("", "file with that certificate's key, PEM")
    upstream_tls_name: str = setting(
        "", "name that the certificates of the tiers below must have, where it is not the host that is called"
    )

    @property
    def upstream_tls(self) -> ClientTls | None:
        """How the tiers below are called; None: without TLS. Raises FailedPrecondition for half of it."""
        rest = (self.upstream_tls_certificate, self.upstream_tls_key, self.upstream_tls_name)
        if not self.upstream_tls_ca:
            if any(rest):
                raise FailedPrecondition("TLS to the tiers below needs --upstream-tls-ca", reason="TLS_SETTINGS")
            return None
        return ClientTls(self.upstream_tls_ca, *rest)


class SettingError(Exception):
    """A setting that is unknown or has a bad value. The message names it, its value and what is allowed."""


def bytes_of(text: str) -> int:
    """`"512M"` → 536870912. Suffixes K, M, G, T are powers of 1024; a trailing `iB` or `B` is accepted."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError("a number of bytes such as 512M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def parse_settings(
    cls: type[S],
    tier: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    description: str = "",
) -> S:
    """Fill `cls` from `argv` and `environ`; exit with status 2 and one clear line when something is wrong.

    `tier` is the word in the middle of `TOKENWIRE_<TIER>_<SETTING>`. `--help` lists every setting with its default.
    """
    parser = argument_parser(cls, tier, description)
    flags = vars(parser.parse_args(argv))
    try:
        return settings_from(cls, tier, flags, os.environ if environ is None else environ)
    except SettingError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def argument_parser(cls: type[Any], tier: str, description: str = "") -> argparse.ArgumentParser:
    """The parser behind `parse_settings`; an absent flag is left out of the result."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {tier}_svc" if tier != "gateway" else "python -m gateway",
        description=description,
        epilog=f"Each setting can also be given in the environment as TOKENWIRE_{tier.upper()}_<SETTING>.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        default = "none" if field.default == () else field.default
        text = f"{field.metadata['help']} (default: {default})".replace("%", "%%")
        if field.type is bool or field.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            choices = field.metadata["choices"]
            parser.add_argument(flag, metavar="|".join(choices) or "VALUE", help=text)
    return parser


def settings_from(cls: type[S], tier: str, flags: Mapping[str, Any], environ: Mapping[str, str]) -> S:
    """Fill `cls`; raises `SettingError`."""
    prefix = f"TOKENWIRE_{tier.upper()}_"
    types = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, text in environ.items():
        if not key.startswith(prefix) or is_service_link(key, text):
            continue
        name = key[len(prefix) :].lower()
        if name not in fields:
            known = ", ".join(prefix + f.upper() for f in fields)
            raise SettingError(f"{key}={text!r}: no such setting; known are {known}")
        values[name] = convert(fields[name], types[name], text, key)
    for name, given in flags.items():
        flag = "--" + name.replace("_", "-")
        values[name] = given if isinstance(given, bool) else convert(fields[name], types[name], given, flag)
    return cls(**values)


def is_service_link(key: str, text: str) -> bool:
    """Whether Kubernetes, not a person, set this variable."""
    return bool(SERVICE_LINK.search(key)) or (key.endswith("_PORT") and "://" in text)


def convert(field: dataclasses.Field[Any], kind: type, text: str, source: str) -> Any:
    """`text` as the field's type, within its bounds; raises `SettingError` naming `source`."""
    meta = field.metadata
    allowed = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(kind, "a value")
    try:
        value: Any = meta["parse"](text) if meta["parse"] else TO_VALUE[kind](text)
    except ValueError as error:
        detail = str(error) if meta["parse"] else allowed
        raise SettingError(f"{source}={text!r}: must be {detail}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{source}={text!r}: must be a finite number")
    low, high, choices = meta["minimum"], meta["maximum"], meta["choices"]
    if choices and value not in choices:
        raise SettingError(f"{source}={text!r}: must be one of {', '.join(choices)}")
    if low is not None and not value >= low:
        raise SettingError(f"{source}={text!r}: must be at least {low}")
    if high is not None and not value <= high:
        raise SettingError(f"{source}={text!r}: must be at most {high}")
    return value


def truth(text: str) -> bool:
    """`1/true/yes/on` and their opposites; raises ValueError for anything else."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


TO_VALUE: dict[type, Callable[[str], Any]] = {int: int, float: float, bool: truth, str: str}
