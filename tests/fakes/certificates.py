"""Certificates of a CA made for a test, as settings take them."""

from pathlib import Path
from typing import Any

from tokenwire.development_ca import DevelopmentCa
from tokenwire.tls import ClientTls

LOCAL = ("localhost", "127.0.0.1")


class Certificates:
    """A CA in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.authority = DevelopmentCa.make(folder)
        self.folder = folder

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    def server(self, name: str = "server", *, ask: bool = False, **issue: Any) -> dict[str, str]:
        """Settings of a tier that shows a certificate, by default one for the loopback."""
        paths = self.pair(name, **{"names": LOCAL, **issue})
        settings = {"tls_certificate": paths[0], "tls_key": paths[1]}
        return {**settings, "tls_client_ca": self.ca} if ask else settings

    def upstream(self, name: str = "caller", **issue: Any) -> dict[str, str]:
        """Settings of a tier that calls another one with a certificate."""
        certificate, key = self.pair(name, **issue)
        return {"upstream_tls_ca": self.ca, "upstream_tls_certificate": certificate, "upstream_tls_key": key}

    def client(self, name: str = "", *, server_name: str = "", **issue: Any) -> ClientTls:
        """A client that trusts this CA; with a name it has a certificate too."""
        pair = self.pair(name, **issue) if name else ("", "")
        return ClientTls(self.ca, *pair, server_name)

    def pair(self, name: str, **issue: Any) -> tuple[str, str]:
        certificate = self.authority.issue(name, **issue)
        return str(certificate), str(certificate.with_name(f"{name}-key.pem"))
