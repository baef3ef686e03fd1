"""A certificate authority for development: one key that signs a certificate for every tier and for clients.

Needs `cryptography` (the `certs` extra). Not for production: the authority's key lies beside what it signed. Knows
nothing of how the files are used.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tokenwire.errors import AlreadyExists, InvalidRequest

TIERS = ("gateway", "tokenizer", "model")
CLIENT = "client"
CA = "ca"
KEY_SUFFIX = "-key"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
MAX_NAME_CHARS = 64
"""Of a common name (RFC 5280, appendix A.1)."""
MAX_DAYS = 36_500
BACKDATED = datetime.timedelta(minutes=5)
"""Clocks of two machines differ."""


class DevelopmentCa:
    """A CA in a folder: `ca.pem`, `ca-key.pem`, and `<name>.pem` with `<name>-key.pem` for each certificate."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self._certificate = certificate
        self._key = key

    @classmethod
    def make(cls, folder: Path, *, days: int = 365) -> "DevelopmentCa":
        """A new CA. Raises AlreadyExists when the folder has one."""
        if (folder / f"{CA}.pem").exists():
            raise AlreadyExists(f"{folder / f'{CA}.pem'} exists: give another folder, or delete it to begin anew")
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tokenwire development CA")])
        builder = (
            _dated(days).subject_name(name).issuer_name(name).public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )  # fmt: skip
        certificate = builder.sign(key, hashes.SHA256())
        _write_pair(folder, CA, certificate, key)
        return cls(folder, certificate, key)

    @classmethod
    def load(cls, folder: Path) -> "DevelopmentCa":
        """The CA that `make` left. Raises InvalidRequest when it is not there or cannot be read."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / f"{CA}.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / f"{CA}{KEY_SUFFIX}.pem").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"{folder} holds no development CA ({error}): make one there first") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidRequest(f"{folder / f'{CA}{KEY_SUFFIX}.pem'} is not a key that this program made")
        return cls(folder, certificate, key)

    def issue(
        self,
        name: str,
        *,
        names: Sequence[str] = (),
        uris: Sequence[str] = (),
        days: float = 90,
        starts_in_days: float = 0,
    ) -> Path:
        """Sign a certificate for server and client use; returns its path. Replaces an older one of that name at once.

        `name`: common name and file name. `names`: host names and addresses it is good for, `uris`: identities such as
        spiffe://…; without either the common name stands as a host name. Negative `days` make one that has expired.
        Raises InvalidRequest for what no certificate can say, and for names whose files would be the CA's or another's.
        """
        _refuse_name(name)
        for text in (*names, *uris):
            _refuse_text(text)
        if max(days, starts_in_days) > MAX_DAYS:
            raise InvalidRequest(f"{max(days, starts_in_days):g} days are too many: at most {MAX_DAYS}")
        key = ec.generate_private_key(ec.SECP256R1())
        start = datetime.datetime.now(datetime.UTC) - BACKDATED + datetime.timedelta(days=starts_in_days)
        end = start + BACKDATED + datetime.timedelta(days=days)
        if days <= 0:
            start = end - datetime.timedelta(days=1)
        alternatives: list[x509.GeneralName] = [_general_name(each) for each in names or (() if uris else (name,))]
        alternatives += [x509.UniformResourceIdentifier(uri) for uri in uris]
        issuer = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder().serial_number(x509.random_serial_number())
            .not_valid_before(start).not_valid_after(end)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject).public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
            )
        )  # fmt: skip
        return _write_pair(self.folder, name, builder.sign(self._key, hashes.SHA256()), key)


def make_all(folder: Path, *, hosts: Sequence[str] = (), days: float = 90) -> list[Path]:
    """A CA, where the folder has none, and a certificate for each tier and for clients; returns what was written.

    `hosts`: names and addresses, besides those of this machine and the tier's own name, that the tiers are reached by.
    """
    written: list[Path] = []
    if (folder / f"{CA}.pem").exists():
        authority = DevelopmentCa.load(folder)
    else:
        authority = DevelopmentCa.make(folder)
        written.append(folder / f"{CA}.pem")
    for tier in TIERS:
        written.append(authority.issue(tier, names=[*dict.fromkeys((tier, *LOCAL_NAMES, *hosts))], days=days))
    written.append(authority.issue(CLIENT, days=days))
    return written


def _refuse_name(name: str) -> None:
    _refuse_text(name)
    if len(name) > MAX_NAME_CHARS or "/" in name or name.startswith("."):
        allowed = f"at most {MAX_NAME_CHARS} characters, no '/', and no '.' at the beginning"
        raise InvalidRequest(f"{name!r:.80} is no name for a certificate and its files: {allowed}")
    if name.lower() == CA or name.lower().endswith(KEY_SUFFIX):
        message = (
            f"{name!r} would be taken for the CA's own files or another's key: not {CA}, and nothing in {KEY_SUFFIX}"
        )
        raise InvalidRequest(message)


def _refuse_text(text: str) -> None:
    if not text or not text.isascii() or not text.isprintable():
        allowed = "printable ASCII characters; other host names in their ASCII form (xn--…)"
        raise InvalidRequest(f"{text!r:.80} cannot stand in a certificate: {allowed}")


def _dated(days: int) -> x509.CertificateBuilder:
    start = datetime.datetime.now(datetime.UTC) - BACKDATED
    end = start + BACKDATED + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder().serial_number(x509.random_serial_number())
    return builder.not_valid_before(start).not_valid_after(end)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.pem"
    _replace(folder / f"{name}{KEY_SUFFIX}.pem", private, 0o600)
    _replace(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return path


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(new, path)
