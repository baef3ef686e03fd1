"""A gateway on the loopback that asks nobody answers to names of this machine alone (DNS rebinding)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.identities import Callers
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake
from tests.fakes.raw_http import error_of, exchange, status_of
from tests.fakes.web_caller import PATH

CHAT = {"messages": [{"role": "user", "content": "a b"}]}
THIS_MACHINE = ("localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:8080")
OTHERS = (
    "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "0.0.0.0",
    "evil.example#localhost", "localhost@evil.example", "[::2]", "", "x" * 5000,
)  # fmt: skip


async def answers(live: LiveGateway, host: str) -> list[Any]:
    """Of every kind of path to a request with this Host field."""
    headers = {"host": host, "origin": f"http://{host[:80]}"}
    gets = [await live.http.get(path, headers=headers) for path in ("/", "/healthz", "/v1/models", "/nowhere")]
    posts = [
        await live.http.post(path, json=body, headers=headers)
        for path, body in (("/v1/chat/completions", CHAT), (PATH + "ListModels", {}))
    ]
    return gets + posts


def test_other_names_are_refused_on_every_path() -> None:
    async def main() -> None:
        async with gateway_over_fake(cors_origins="*") as (tier, live):
            for host in OTHERS:
                for answer in await answers(live, host):
                    assert answer.status_code == 403, host
                    error = answer.json()["error"]
                    assert (error["type"], error["code"]) == ("permission_error", "host_not_allowed")
                    assert "--identity-file" in error["message"] and len(error["message"]) < 1024
                    assert "access-control-allow-origin" not in answer.headers
            assert tier.requests == []

    asyncio.run(main())


def test_a_target_that_is_a_whole_address_says_whose_server_is_asked() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            line = b"GET http://%b/v1/models HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"
            for target in (b"evil.example", b"evil.example:80", b"localhost@evil.example", b"HTTP://localhost"):
                answer = await exchange(live, line % (target, b"localhost"))
                assert status_of(answer) == 403 and error_of(answer)["code"] == "host_not_allowed", target
            assert status_of(await exchange(live, line % (b"localhost:8080", b"evil.example"))) == 200

    asyncio.run(main())


def test_http_1_0_is_answered_by_its_host_field_and_without_one_where_any_name_will_do() -> None:
    async def main() -> None:
        line = b"GET /v1/models HTTP/1.0\r\n"
        async with gateway_over_fake() as (_, live):
            assert status_of(await exchange(live, line + b"\r\n")) == 403
            assert status_of(await exchange(live, line + b"Host: evil.example\r\n\r\n")) == 403
            assert status_of(await exchange(live, line + b"Host: localhost\r\n\r\n")) == 200
        async with gateway_over_fake(insecure=True) as (_, live):
            assert status_of(await exchange(live, line + b"\r\n")) == 200

    asyncio.run(main())


def test_names_of_this_machine_are_answered() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for host in THIS_MACHINE:
                assert [answer.status_code for answer in await answers(live, host)] == [200, 200, 200, 404, 200, 200]

    asyncio.run(main())


@pytest.mark.parametrize("settings", [{"insecure": True}, {"host": "0.0.0.0", "insecure": True}])
def test_a_gateway_that_is_meant_to_be_open_is_called_by_any_name(settings: dict[str, Any]) -> None:
    async def main() -> None:
        async with gateway_over_fake(**settings) as (_, live):
            for host in ("evil.example", "localhost"):
                assert (await live.http.get("/v1/models", headers={"host": host})).status_code == 200

    asyncio.run(main())


def test_where_callers_are_asked_the_key_says_who_they_are(tmp_path: Path) -> None:
    callers = Callers.write(tmp_path / "identities.json")

    async def main() -> None:
        async with gateway_over_fake(identity_file=str(callers.path)) as (_, live):
            headers = {"host": "gateway.example", "authorization": f"Bearer {callers.keys['alice']}"}
            assert (await live.http.get("/v1/models", headers=headers)).status_code == 200
            del headers["authorization"]
            assert (await live.http.get("/v1/models", headers=headers)).status_code == 401

    asyncio.run(main())


def test_a_file_of_limits_alone_asks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    path.write_text('{"tenants": {"alice": {"max_streams": 5}}}')

    async def main() -> None:
        async with gateway_over_fake(identity_file=str(path)) as (_, live):
            assert (await live.http.get("/v1/models", headers={"host": "evil.example"})).status_code == 403
            assert (await live.http.get("/v1/models")).status_code == 200

    asyncio.run(main())
