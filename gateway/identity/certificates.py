"""The names in a client's certificate by kind, as `ssl` tells of it. Knows nobody's rights."""

from collections.abc import Mapping
from typing import Any

KINDS = ("peer_uri", "peer_dns", "x509_common_name")
"""Of the names that count, in gRPC's words and in the order in which they are looked up."""
SUBJECT_ALT_KINDS = {"URI": "peer_uri", "DNS": "peer_dns"}


def names_by_kind(certificate: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each of KINDS with its names. `certificate`: what `ssl.SSLSocket.getpeercert` gives; empty: there is none."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in SUBJECT_ALT_KINDS:
            found[SUBJECT_ALT_KINDS[kind]].append(value)
    for part in certificate.get("subject", ()):
        found["x509_common_name"] += [value for key, value in part if key == "commonName"]
    return found
