"""Which web pages may use the HTTP port: asked as browsers ask."""

import asyncio
from typing import Any

import pytest

from gateway.http.cors import origins_of
from gateway.settings import GatewaySettings
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tests.fakes.web_caller import PATH
from tokenwire.settings import parse_settings

APP = "https://app.example"
WANTED = "authorization,connect-protocol-version,connect-timeout-ms,content-type,x-stainless-lang"


def preflight(origin: str = APP, method: str = "POST") -> dict[str, str]:
    return {"origin": origin, "access-control-request-method": method, "access-control-request-headers": WANTED}


@pytest.mark.parametrize("path", [PATH + "Chat", PATH + "ListModels", "/v1/chat/completions", "/v1/models"])
def test_an_origin_that_is_named_may(path: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(cors_origins=f"{APP},http://localhost:5173") as (_, live):
            for origin in (APP, "http://localhost:5173"):
                asked = await live.http.options(path, headers=preflight(origin))
                assert asked.status_code == 200
                assert asked.headers["access-control-allow-origin"] == origin
                assert "POST" in asked.headers["access-control-allow-methods"]
                assert set(WANTED.split(",")) <= set(asked.headers["access-control-allow-headers"].split(","))
                assert "origin" in asked.headers["vary"].lower()
                assert "access-control-allow-credentials" not in asked.headers
            for origin in ("https://evil.example", "https://app.example.evil", "http://app.example", "null"):
                asked = await live.http.options(path, headers=preflight(origin))
                assert asked.status_code == 400 and "access-control-allow-origin" not in asked.headers
            for method in ("PUT", "DELETE"):
                assert (await live.http.options(path, headers=preflight(method=method))).status_code == 400

    asyncio.run(main())


def test_answers_and_errors_may_be_read_by_it_alone() -> None:
    async def main() -> None:
        async with gateway_over_fake(cors_origins=APP, max_body_bytes=1024) as (_, live):

            async def answer(path: str, body: dict[str, Any], origin: str, content_type: str = "") -> Any:
                headers = {"origin": origin, **({"content-type": content_type} if content_type else {})}
                return await live.http.post(path, json=body, headers=headers)

            chat = {"model": MODEL, "messages": [{"role": "user", "content": "a b"}]}
            for path, body, status in (
                (PATH + "ListModels", {}, 200),
                (PATH + "Embed", {}, 400),
                ("/v1/chat/completions", chat, 200),
                ("/v1/chat/completions", {**chat, "stream": True}, 200),
                ("/v1/chat/completions", {**chat, "x": 1}, 400),
                ("/v1/nothing", {}, 404),
                ("/generate", {"inputs": "a" * 2000}, 413),
            ):
                response = await answer(path, body, APP)
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == APP
                readable = response.headers["access-control-expose-headers"]
                assert {"grpc-status", "retry-after", "x-request-id"} <= {each.strip() for each in readable.split(",")}
                assert "access-control-allow-origin" not in (await answer(path, body, "https://evil.example")).headers
            assert "access-control-allow-origin" not in (await live.http.post("/generate", json=chat)).headers

    asyncio.run(main())


def test_nobody_may_by_default() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for path in (PATH + "Chat", "/v1/chat/completions", "/v1/models"):
                asked = await live.http.options(path, headers=preflight())
                assert asked.status_code == 405 and "access-control-allow-origin" not in asked.headers
            # What a page may send without asking is refused: no path takes a body that is not said to be JSON.
            for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                for path in (PATH + "ListModels", "/v1/completions", "/generate"):
                    headers = {"origin": APP, "content-type": content_type}
                    assert (await live.http.post(path, content=b"{}", headers=headers)).status_code == 415

    asyncio.run(main())


def test_all_may_where_that_is_said() -> None:
    async def main() -> None:
        async with gateway_over_fake(cors_origins="*") as (_, live):
            asked = await live.http.options(PATH + "Chat", headers=preflight("https://anybody.example"))
            assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in asked.headers

    asyncio.run(main())


def test_the_setting() -> None:
    settings = parse_settings(
        GatewaySettings, "gateway", ["--cors-origins", f" {APP}, {APP},http://[::1]:80"], {}, description=""
    )
    assert settings.cors_origins == f"{APP},http://[::1]:80"
    assert origins_of("") == "" and origins_of("*") == "*"
    for bad in ("app.example", "https://app.example/", "https://app.example/a", "*,https://a", "null", "HTTPS://A"):
        with pytest.raises(ValueError, match="origins like"):
            origins_of(bad)
