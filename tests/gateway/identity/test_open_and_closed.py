"""What asks and what answers everybody: services, paths, and what is for administrators."""

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.entrances import ENTRANCES, asking, bearer, greet
from tests.fakes.identities import Callers, Issuer
from tests.fakes.live_gateway import live_gateway
from tests.fakes.raw_http import connected
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tokenwire.client import AsyncClient
from tokenwire.kserve import inference_pb2, inference_pb2_grpc


def test_models_that_are_not_allowed_are_not_listed(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            for name, expected in (("alice", [MODEL]), ("bob", [])):
                async with AsyncClient(live.grpc_target, api_key=callers.keys[name]) as client:
                    assert [card.name for card in await client.models()] == expected
                response = await live.http.get("/v1/models", headers=callers.header(name))
                assert [card["id"] for card in response.json()["data"]] == expected
                call = live.stub.Session(metadata=bearer(callers.keys[name]))
                assert [card.name for card in (await greet(call)).models] == expected
                call.cancel()
                response = await live.http.get(f"/v1/models/{MODEL}", headers=callers.header(name))
                assert response.status_code == (200 if expected else 404)

    asyncio.run(main())


def test_every_service_asks_but_health(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            reflection = reflection_pb2_grpc.ServerReflectionStub(live.channel)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            inference = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
            channelz = channelz_pb2_grpc.ChannelzStub(live.channel)
            health = health_pb2_grpc.HealthStub(live.channel)
            alice, root = bearer(callers.keys["alice"]), bearer(callers.keys["root"])

            async def code(call: Any) -> str:
                try:
                    await (call.read() if hasattr(call, "read") else call)
                    return "OK"
                except grpc.aio.AioRpcError as error:
                    return str(error.code().name)

            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
            assert await code(reflection.ServerReflectionInfo(iter(asked))) == "UNAUTHENTICATED"
            assert await code(reflection.ServerReflectionInfo(iter(asked), metadata=alice)) == "OK"
            live_request = inference_pb2.ServerLiveRequest()
            assert await code(inference.ServerLive(live_request)) == "UNAUTHENTICATED"
            assert await code(inference.ServerLive(live_request, metadata=alice)) == "OK"
            servers = channelz_pb2.GetServersRequest()
            assert await code(channelz.GetServers(servers)) == "UNAUTHENTICATED"
            assert await code(channelz.GetServers(servers, metadata=alice)) == "PERMISSION_DENIED"
            assert await code(channelz.GetServers(servers, metadata=root)) == "OK"

    asyncio.run(main())


def test_every_path_asks_but_health_and_metrics_are_for_admins(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            for path in ("/v1/models", "/nowhere", "/v1/embeddings", "/metrics", "/live"):
                assert (await live.http.get(path)).status_code == 401, path
            assert (await live.http.get("/nowhere", headers=callers.header("alice"))).status_code == 404
            assert (await live.http.get("/healthz")).status_code == 200
            for path in ("/", "/page/main.js"):
                assert (await live.http.get(path)).status_code == 200, path
            for path in ("/page/", "/page/nothing.js", "/page/main.js/", "/index.html"):
                assert (await live.http.get(path)).status_code == 401, path
            assert (await live.http.get("/readyz")).json() == {"status": "ready"}
            for path in ("/metrics", "/metrics?a", "/%6detrics", "/live", "/live?a"):
                assert (await live.http.get(path, headers=callers.header("alice"))).status_code == 403, path
            assert (await live.http.get("/metrics%0A", headers=callers.header("alice"))).status_code == 400
            response = await live.http.get("/metrics", headers=callers.header("root"))
            assert 'tokenwire_gateway_identity_refusals_total{reason="no_credentials"} 9.0' in response.text
        async with asking(callers, issuer, open_health=False, open_metrics=True) as (_, live):
            assert (await live.http.get("/readyz")).status_code == 401
            assert (await live.http.get("/readyz", headers=callers.header("alice"))).json()["models"] == [MODEL]
            assert (await live.http.get("/metrics")).status_code == 200
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(live.channel).Check(health_pb2.HealthCheckRequest())

    asyncio.run(main())


def test_nobody_is_asked_where_nothing_is_set() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, live_gateway(tier) as live:
            for entrance in ENTRANCES:
                asked = {"tenant": "x", "priority": 100} if "tenant" in entrance.names else {}
                await entrance.call(live, (), **asked)
            assert (await live.http.get("/metrics")).status_code == 200

    asyncio.run(main())


def test_what_openai_sdks_send_is_taken(callers: Callers, issuer: Issuer) -> None:
    """Their api_key, and nothing else."""

    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            async with httpx.AsyncClient(headers=callers.header("alice"), trust_env=False) as http:
                body = {"messages": [{"role": "user", "content": "a"}]}
                response = await http.post(f"{live.http_url}/v1/chat/completions", json=body)
                assert response.status_code == 200

    asyncio.run(main())


def test_a_key_behind_a_body_lets_nobody_in(callers: Callers, issuer: Issuer) -> None:
    """Where others would read a field of the head, and where a request would begin that hides in another's body."""
    bearer_line = f"Authorization: Bearer {callers.keys['root']}\r\n".encode()
    head = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    hidden = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + bearer_line + b"\r\n"
    upgrade = b"UPGRADE: h2c\r\nConnection: upgrade\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    known = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" + bearer_line

    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            for said, status in (
                (head + b"\r\n0\r\n" + bearer_line + b"\r\n", b"401"),
                (head + bearer_line + b"\r\n0\r\n\r\n", b"405"),
                (known + upgrade + hidden, b"405"),
            ):
                async with connected(live) as (reader, writer), asyncio.timeout(10):
                    writer.write(said)
                    writer.write_eof()
                    answer = await reader.read(-1)
                assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1 ") == 1, answer

    asyncio.run(main())
