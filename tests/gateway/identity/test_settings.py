"""Settings of identity: which are refused, and which let a gateway listen beyond the loopback."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.server import Gateway
from gateway.settings import GatewaySettings
from tests.fakes.identities import Callers
from tokenwire.errors import FailedPrecondition


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "--identity-file"),
        ({"jwt_issuer": "a"}, "need --jwt-jwks"),
        ({"jwt_jwks": "nowhere.json"}, "--jwt-audience"),
        ({"jwt_jwks": "nowhere.json", "jwt_issuer": "a", "jwt_audience": "b"}, "nowhere.json"),
        ({"identity_file": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    async def main() -> None:
        Gateway(GatewaySettings(port=0, http_port=0, metrics_port=0, **settings), registry=CollectorRegistry())

    with pytest.raises(FailedPrecondition, match=said):
        asyncio.run(main())


def test_a_gateway_that_asks_may_listen_beyond_the_loopback(callers: Callers) -> None:
    assert GatewaySettings(identity_file=str(callers.path)).asks_who
    callers.whole = {"tenants": {"a": {"requests_per_s": 1}}}
    callers.save()
    assert not GatewaySettings(identity_file=str(callers.path)).asks_who
    callers.whole = {"keys": []}
    callers.save()
    assert GatewaySettings(identity_file=str(callers.path)).asks_who
