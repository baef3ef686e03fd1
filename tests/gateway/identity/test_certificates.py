"""Client certificates that say who calls."""

import asyncio
from pathlib import Path

import pytest

from gateway.identity.certificates import names_by_kind
from tests.fakes.certificates import Certificates
from tests.fakes.entrances import (
    ENTRANCES,
    asking,
    bearer,
    connect_generate,
    grpc_generate,
    grpc_session,
    grpc_web_generate,
    http_completions,
)
from tests.fakes.identities import Callers, Issuer
from tokenwire.errors import PermissionDenied, Unauthenticated


def test_a_client_certificate_says_who_calls(callers: Callers, issuer: Issuer, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "ca")
    callers.whole["certificates"] = [
        {"name": "spiffe://test/erin", "tenant": "erin", "max_priority": 3}, {"name": "frank", "tenant": "frank"}
    ]  # fmt: skip
    callers.save()
    known = {
        "erin": certificates.client("erin-cert", uris=["spiffe://test/erin"]),
        "frank": certificates.client("frank"),
    }
    stranger = certificates.client("stranger")

    async def main() -> None:
        ask = certificates.server(ask=True)
        for name, tls in known.items():
            async with asking(callers, issuer, tls=tls, **ask) as (tier, live):
                ways = (http_completions, grpc_generate, grpc_session, connect_generate, grpc_web_generate)
                for way in ways:
                    await way(live, ())
                assert [request.context.tenant for request in tier.requests] == [name] * len(ways)
                with pytest.raises(PermissionDenied):
                    await http_completions(live, (), priority=4)
                await http_completions(live, bearer(callers.keys["alice"]))
                assert tier.requests[-1].context.tenant == "alice"
                with pytest.raises(Unauthenticated):
                    await grpc_generate(live, bearer("tw-wrong"))
        async with asking(callers, issuer, tls=stranger, **ask) as (_, live):
            for entrance in ENTRANCES:
                with pytest.raises(Unauthenticated) as caught:
                    await entrance.call(live, ())
                assert caught.value.reason == "UNKNOWN_CERTIFICATE"

    asyncio.run(main())


def test_names_are_told_by_kind() -> None:
    certificate = {
        "subject": ((("organizationName", "o"),), (("commonName", "c"),)),
        "subjectAltName": (("DNS", "d"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://u"), ("DNS", "e")),
    }
    assert names_by_kind(certificate) == {"peer_uri": ["spiffe://u"], "peer_dns": ["d", "e"], "x509_common_name": ["c"]}
    assert not any(names_by_kind({}).values())
