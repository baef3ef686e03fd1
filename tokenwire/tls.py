"""TLS from PEM files: what a server shows, what a client trusts, and both again when the files have changed.

Files are looked at when a connection is made, never in between, so what runs is not cut. Files that make no sense, a
certificate without its key while they are being replaced say, leave what was there in force. At least TLS 1.2, and 1.3
where clients must show certificates. Knows no tier, no service and no gRPC, whose credentials `grpc_tls` makes from
these files.
"""

import logging
import os
import ssl
import threading
from dataclasses import dataclass

from tokenwire.errors import FailedPrecondition
from tokenwire.logs import fields

log = logging.getLogger(__name__)

SYSTEM_CA = "system"
"""Stands for a CA file: the CAs that this machine trusts."""

Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Pems:
    """What files hold. `ca` None: the machine's own, or no certificate is asked for."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server shows, as paths. `client_ca`: every client must show a certificate of these CAs; empty: none is."""

    certificate: str
    key: str
    client_ca: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(filter(None, (self.certificate, self.key, self.client_ca)))

    def context(self) -> ssl.SSLContext:
        """For ssl. Raises OSError, ssl.SSLError among them, and ValueError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        resume_nothing(context, asks=bool(self.client_ca))
        context.load_cert_chain(self.certificate, self.key, _no_password)
        if self.client_ca:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def pems(self) -> Pems:
        """What the files hold. Raises OSError."""
        return Pems(_read(self.client_ca), _read(self.certificate), _read(self.key))


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client trusts and shows, as paths. `ca` empty or "system": the CAs that this machine trusts.

    `certificate` and `key`: shown to servers that ask. `server_name`: the name that the server's certificate must have,
    where that is not the host that is called.
    """

    ca: str = SYSTEM_CA
    certificate: str = ""
    key: str = ""
    server_name: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(filter(None, (self._ca_file, self.certificate, self.key)))

    @property
    def _ca_file(self) -> str:
        return "" if self.ca == SYSTEM_CA else self.ca

    def pems(self) -> Pems:
        """What the files hold. Raises FailedPrecondition naming them when they cannot be used."""
        if bool(self.certificate) != bool(self.key):
            raise _refusal(self.paths, "a client certificate and its key go together: give both or neither")
        try:
            context = ssl.create_default_context(cafile=self._ca_file or None)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key, _no_password)
            return Pems(_read(self._ca_file), _read(self.certificate), _read(self.key))
        except (OSError, ValueError) as error:
            raise _refusal(self.paths, str(error)) from None


class WatchedFiles:
    """Says whether files have changed since they were looked at last. May be used by several threads."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._stamp: Stamp = stamp_of(paths)

    def changed(self) -> bool:
        """Whether there is something to read again; only one caller hears of a change."""
        stamp = stamp_of(self._paths)
        with self._lock:
            changed, self._stamp = stamp != self._stamp, stamp
        return changed


class ServerFiles:
    """A server's files, loaded again when a connection comes after they have changed."""

    def __init__(self, tls: ServerTls) -> None:
        """Raises FailedPrecondition naming the file that is wrong."""
        self._tls = tls
        self._watched = WatchedFiles(tls.paths)
        try:
            self.context = tls.context()
            self.pems = tls.pems()
        except (OSError, ValueError) as error:
            raise _refusal(tls.paths, str(error)) from None

    def refresh(self) -> bool:
        """Load what has changed. Whether there is something new; what is wrong is logged, and the old stays."""
        if not self._watched.changed():
            return False
        try:
            context, pems = self._tls.context(), self._tls.pems()
        except (OSError, ValueError) as error:
            said = f"{', '.join(self._tls.paths)}: {error}"
            log.warning("the new certificate cannot be used, the old one stays", extra=fields(error=said))
            return False
        self.context, self.pems = context, pems
        log.info("certificates were read again", extra=fields(certificate=self._tls.certificate))
        return True


class LoggedHandshake(ssl.SSLObject):
    """Says why a handshake failed, which asyncio keeps to itself."""

    def do_handshake(self) -> None:
        """As its base."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.info("a TLS handshake failed", extra=fields(error=handshake_problem(error)))
            raise


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """For a listener of asyncio. Raises FailedPrecondition."""
    files = ServerFiles(tls)
    context = files.context
    context.sslobject_class = LoggedHandshake
    keep_fresh(context, files)
    return context


def resume_nothing(context: ssl.SSLContext, *, asks: bool) -> None:
    """Let no session be resumed that would bring a CA back which has been taken out.

    `asks`: clients must show certificates. Then it is TLS 1.3 alone, since 1.2 resumes sessions without tickets too.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if asks else ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def keep_fresh(context: ssl.SSLContext, files: ServerFiles) -> None:
    """Let every connection of this context have what the files hold when it is made."""

    def on_hello(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        files.refresh()
        if connection.context is not files.context:
            connection.context = files.context

    context.sni_callback = on_hello


def handshake_problem(error: ssl.SSLError) -> str:
    """What a server's log says of a client that got no connection."""
    match error.reason:
        case "HTTP_REQUEST" | "HTTPS_PROXY_REQUEST":
            return "the client spoke plain HTTP, and this port speaks TLS"
        case "WRONG_VERSION_NUMBER":
            return "the client did not speak TLS, or a version that is refused here"
        case "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "the client showed no certificate, and this port asks for one"
    return str(error)


def stamp_of(paths: tuple[str, ...]) -> Stamp:
    """What tells a file from the same file written anew; empty for one that is not there."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError:
            found.append(())
        else:
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(found)


def _read(path: str) -> bytes | None:
    if not path:
        return None
    with open(path, "rb") as file:
        return file.read()


def _no_password() -> str:
    """Instead of asking at a terminal."""
    raise ValueError("the key is protected by a password, which is not supported: decrypt the file")


def _refusal(paths: tuple[str, ...], problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"TLS files {', '.join(paths) or 'of this machine'}: {problem}", reason="TLS_FILES")
