"""Who may call: the same matrix over HTTP, unary gRPC, gRPC streams and Sessions, against a running gateway."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from gateway.identity import keyring as keyring_module
from gateway.server import Gateway
from gateway.settings import GatewaySettings
from tests.fakes.certificates import Certificates
from tests.fakes.identities import Callers, Issuer
from tests.fakes.live_gateway import LiveGateway, generate_request, live_gateway
from tests.fakes.tokenizer_tier import MODEL, FakeTokenizerTier, fake_tokenizer_tier
from tokenwire.channels import aio_channel
from tokenwire.cli.tiers import free_ports
from tokenwire.client import AsyncClient
from tokenwire.errors import FailedPrecondition, NotFound, PermissionDenied, TokenwireError, Unauthenticated
from tokenwire.health import wait_serving
from tokenwire.identity_file import hash_of
from tokenwire.kserve import inference_pb2, inference_pb2_grpc
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, gateway_pb2_grpc, tokenizer_pb2
from tokenwire.wire import terminal_from_wire

Metadata = tuple[tuple[str, str], ...]


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers.write(tmp_path / "identities.json")


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


@pytest.fixture(autouse=True)
def files_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "LOOK_AGAIN_S", 0.0)


@asynccontextmanager
async def asking(callers: Callers, issuer: Issuer, **more: Any) -> AsyncIterator[tuple[FakeTokenizerTier, LiveGateway]]:
    settings = {"identity_file": str(callers.path), **issuer.settings(), **more}
    async with fake_tokenizer_tier() as tier, live_gateway(tier, **settings) as live:
        yield tier, live


async def over_http(live: LiveGateway, headers: Metadata, **context: Any) -> None:
    """Raises what the answer says."""
    body = {"prompt": "a b", **context}
    response = await live.http.post("/v1/completions", json=body, headers=list(headers))
    if response.status_code == 200:
        return
    error = response.json()["error"]
    kinds = {401: Unauthenticated, 403: PermissionDenied, 404: NotFound}
    assert error["type"] == kinds[response.status_code].openai_type
    assert ("www-authenticate" in response.headers) == (response.status_code == 401)
    if response.status_code == 401:
        assert response.headers["www-authenticate"].startswith('Bearer realm="tokenwire"')
    raise kinds[response.status_code](error["message"], reason=error["code"].upper())


async def over_unary_grpc(live: LiveGateway, headers: Metadata, **context: Any) -> None:
    model = context.pop("model", "")
    request = tokenizer_pb2.EmbedRequest(texts=["a b"], model=model, context=common_pb2.RequestContext(**context))
    try:
        await live.stub.Embed(request, metadata=headers, timeout=10)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # the fake tier's answer to who is let in
            raise from_rpc_error(error) from None


async def over_grpc_stream(live: LiveGateway, headers: Metadata, **context: Any) -> None:
    model = context.pop("model", "")
    request = generate_request("a b", model=model, context=common_pb2.RequestContext(**context))
    call = live.stub.Generate(request, metadata=headers, timeout=10)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def over_session(live: LiveGateway, headers: Metadata, **context: Any) -> None:
    """A call that ended while its first message was written gets INTERNAL from grpc itself: it is made again."""
    while True:
        call = live.stub.Session(metadata=headers, timeout=10)
        try:
            await greet(call)
            await submitted(call, 1, **context)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INTERNAL or error.details() != "Internal error from Core":
                raise from_rpc_error(error) from None
        except asyncio.InvalidStateError:
            raise from_rpc_error(await ended(call)) from None
        finally:
            call.cancel()


async def ended(call: Any) -> grpc.aio.AioRpcError:
    """How a call ended."""
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


async def greet(call: Any) -> Any:
    await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
    first = await call.read()
    if first is grpc.aio.EOF:
        raise await ended(call)
    return first.hello


async def submitted(call: Any, handle: int, **context: Any) -> None:
    """One request on a session to its end. Raises its error."""
    model = context.pop("model", "")
    request = tokenizer_pb2.TextRequest(text="a b", model=model, context=common_pb2.RequestContext(**context))
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=handle, request=request)]))
    while True:
        frame = await call.read()
        for finish in frame.finishes:
            if (error := terminal_from_wire(finish).error) is not None:
                raise error
            return


WAYS: list[Callable[..., Awaitable[None]]] = [over_http, over_unary_grpc, over_grpc_stream, over_session]


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def matrix(
    callers: Callers, issuer: Issuer
) -> list[tuple[str, Metadata, dict[str, Any], type[TokenwireError] | None, str]]:
    """What is tried, the headers, what is asked for, and how it is refused."""
    alice = bearer(callers.keys["alice"])
    now = time.time()
    no, denied = Unauthenticated, PermissionDenied
    return [
        ("no key", (), {}, no, "NO_CREDENTIALS"),
        ("wrong key", bearer("tw-wrong"), {}, no, "INVALID_API_KEY"),
        ("part of a key", bearer(callers.keys["alice"][:-1]), {}, no, "INVALID_API_KEY"),
        ("another scheme", (("authorization", f"Basic {callers.keys['alice']}"),), {}, no, "MALFORMED_CREDENTIALS"),
        ("no scheme", (("authorization", callers.keys["alice"]),), {}, no, "MALFORMED_CREDENTIALS"),
        ("no value", (("authorization", "Bearer"),), {}, no, "MALFORMED_CREDENTIALS"),
        ("two headers", alice + alice, {}, no, "MALFORMED_CREDENTIALS"),
        ("expired key", bearer(callers.keys["late"]), {}, no, "EXPIRED_CREDENTIALS"),
        ("expired token", bearer(issuer.token(exp=now - 100)), {}, no, "TOKEN_EXPIRED"),
        ("token of tomorrow", bearer(issuer.token(nbf=now + 86_400)), {}, no, "INVALID_TOKEN"),
        ("wrong audience", bearer(issuer.token(aud="else")), {}, no, "INVALID_TOKEN"),
        ("wrong issuer", bearer(issuer.token(iss="else")), {}, no, "INVALID_TOKEN"),
        ("unknown key id", bearer(issuer.token(header={"kid": "else"})), {}, no, "INVALID_TOKEN"),
        ("alg none", bearer("eyJhbGciOiJub25lIiwia2lkIjoib25lIn0.e30."), {}, no, "INVALID_TOKEN"),
        ("another's tenant", alice, {"tenant": "bob"}, denied, "TENANT_MISMATCH"),
        ("token for another's tenant", bearer(issuer.token()), {"tenant": "bob"}, denied, "TENANT_MISMATCH"),
        ("priority too high", alice, {"priority": 11}, denied, "PRIORITY_TOO_HIGH"),
        ("model not allowed", bearer(callers.keys["bob"]), {"model": MODEL}, NotFound, "MODEL_NOT_FOUND"),
        ("default model not allowed", bearer(callers.keys["bob"]), {}, NotFound, "MODEL_NOT_FOUND"),
        ("model not in the token", bearer(issuer.token(models=["else"])), {}, NotFound, "MODEL_NOT_FOUND"),
        ("a key", alice, {"priority": 10, "tenant": "alice"}, None, ""),
        ("lower case", (("authorization", f"bearer  {callers.keys['alice']}"),), {}, None, ""),
        ("a token", bearer(issuer.token(models=[MODEL], max_priority=5)), {"priority": 5, "model": MODEL}, None, ""),
        ("a front for all", bearer(callers.keys["front"]), {"tenant": "anyone"}, None, ""),
    ]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_matrix(callers: Callers, issuer: Issuer, way: Callable[..., Awaitable[None]]) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            for name, headers, context, kind, reason in matrix(callers, issuer):
                try:
                    await way(live, headers, **context)
                    refused: TokenwireError | None = None
                except TokenwireError as error:
                    refused = error
                assert (type(refused), refused and refused.reason) == (kind or type(None), reason or None), name
                if refused is not None:
                    secrets = [*callers.keys.values(), *(value.partition(" ")[2] for _, value in headers)]
                    assert not any(secret and secret in refused.message for secret in secrets), name

    asyncio.run(main())


def test_the_tenant_below_is_the_callers_own(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer) as (tier, live):
            for way in (over_http, over_grpc_stream, over_session):
                await way(live, bearer(callers.keys["alice"]))
                await way(live, bearer(issuer.token()))
                await way(live, bearer(callers.keys["front"]), tenant="somebody")
            found = [request.context.tenant for request in tier.requests]
            assert found == ["alice", "carol", "somebody"] * 3

    asyncio.run(main())


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
            for path in ("/v1/models", "/nowhere", "/v1/embeddings", "/metrics", "/"):
                assert (await live.http.get(path)).status_code == 401, path
            assert (await live.http.get("/nowhere", headers=callers.header("alice"))).status_code == 404
            assert (await live.http.get("/healthz")).status_code == 200
            assert (await live.http.get("/readyz")).json() == {"status": "ready"}
            for path in ("/metrics", "/metrics?a", "/%6detrics"):
                assert (await live.http.get(path, headers=callers.header("alice"))).status_code == 403, path
            assert (await live.http.get("/metrics%0A", headers=callers.header("alice"))).status_code == 400
            response = await live.http.get("/metrics", headers=callers.header("root"))
            assert 'tokenwire_gateway_identity_refusals_total{reason="no_credentials"} 5.0' in response.text
        async with asking(callers, issuer, open_health=False, open_metrics=True) as (_, live):
            assert (await live.http.get("/readyz")).status_code == 401
            assert (await live.http.get("/readyz", headers=callers.header("alice"))).json()["models"] == [MODEL]
            assert (await live.http.get("/metrics")).status_code == 200
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(live.channel).Check(health_pb2.HealthCheckRequest())

    asyncio.run(main())


def test_a_key_that_is_revoked_starts_nothing_more_on_an_open_session(callers: Callers, issuer: Issuer) -> None:
    """What runs goes on; a key that is added works without a restart; a file that makes no sense changes nothing."""

    async def main() -> None:
        async with asking(callers, issuer) as (tier, live):
            call = live.stub.Session(metadata=bearer(callers.keys["alice"]))
            await greet(call)
            await submitted(call, 1)
            running = tokenizer_pb2.TextRequest(text="!step a b")
            submit = tokenizer_pb2.Submit(handle=2, request=running)
            await call.write(tokenizer_pb2.SessionRequest(submits=[submit]))
            await tier.until(lambda: tier.num_running == 1)
            callers.whole["keys"] = [key for key in callers.whole["keys"] if key["name"] != "alice"]
            new = callers.add("dora")
            with pytest.raises(Unauthenticated):
                await submitted(call, 3)
            while True:
                tier.step()
                frame = await call.read()
                if frame.finishes:
                    assert terminal_from_wire(frame.finishes[0]).error is None
                    break
            call.cancel()
            callers.path.write_text("{")
            await over_http(live, bearer(new))
            with pytest.raises(Unauthenticated):
                await over_http(live, bearer(callers.keys["alice"]))

    asyncio.run(main())


def test_a_token_that_expires_starts_nothing_more_on_an_open_session(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer, jwt_leeway_s=0.0) as (_, live):
            call = live.stub.Session(metadata=bearer(issuer.token(exp=time.time() + 1.5)))
            await greet(call)
            await submitted(call, 1)
            await asyncio.sleep(1.6)
            with pytest.raises(Unauthenticated) as caught:
                await submitted(call, 2)
            assert caught.value.reason == "TOKEN_EXPIRED"
            call.cancel()

    asyncio.run(main())


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
                for way in (over_http, over_grpc_stream, over_session):
                    await way(live, ())
                assert [request.context.tenant for request in tier.requests] == [name] * 3
                with pytest.raises(PermissionDenied):
                    await over_http(live, (), priority=4)
                await over_http(live, bearer(callers.keys["alice"]))
                assert tier.requests[-1].context.tenant == "alice"
                with pytest.raises(Unauthenticated):
                    await over_grpc_stream(live, bearer("tw-wrong"))
        async with asking(callers, issuer, tls=stranger, **ask) as (_, live):
            for way in WAYS:
                with pytest.raises(Unauthenticated) as caught:
                    await way(live, ())
                assert caught.value.reason == "UNKNOWN_CERTIFICATE"

    asyncio.run(main())


def test_nobody_is_asked_where_nothing_is_set() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, live_gateway(tier) as live:
            for way in WAYS:
                await way(live, (), tenant="x", priority=100)
            assert (await live.http.get("/metrics")).status_code == 200

    asyncio.run(main())


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


def test_what_openai_sdks_send_is_taken(callers: Callers, issuer: Issuer) -> None:
    """Their api_key, and nothing else."""

    async def main() -> None:
        async with asking(callers, issuer) as (_, live):
            async with httpx.AsyncClient(headers=callers.header("alice"), trust_env=False) as http:
                body = {"messages": [{"role": "user", "content": "a"}]}
                response = await http.post(f"{live.http_url}/v1/chat/completions", json=body)
                assert response.status_code == 200

    asyncio.run(main())


def test_no_secret_is_in_any_log_metric_or_channelz_of_a_real_run(callers: Callers, issuer: Issuer) -> None:
    """The gateway as a process that logs everything, asked by everybody in the matrix."""

    async def main() -> str:
        async with fake_tokenizer_tier() as tier:
            port, http_port = free_ports(2)
            flags = {
                "port": port, "http-port": http_port, "metrics-port": 0, "tokenizer-targets": tier.target,
                "identity-file": callers.path, **{k.replace("_", "-"): v for k, v in issuer.settings().items()},
            }  # fmt: skip
            words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", *words, env={**os.environ, "TOKENWIRE_LOG": "debug,json"},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                await asyncio.wait_for(wait_serving(f"127.0.0.1:{port}"), 30)
                said = await asked_by_everybody(port, http_port)
            finally:
                process.terminate()
                output, _ = await process.communicate()
        return said + output.decode()

    async def asked_by_everybody(port: int, http_port: int) -> str:
        async with aio_channel(f"127.0.0.1:{port}") as channel:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", trust_env=False) as http:
                live: Any = SimpleNamespace(stub=gateway_pb2_grpc.GenerationServiceStub(channel), http=http)
                for _, headers, context, _, _ in tried:
                    for way in WAYS:
                        with contextlib.suppress(TokenwireError):
                            await way(live, headers, **context)
                root = bearer(callers.keys["root"])
                metrics = await http.get("/metrics", headers=list(root))
                channelz = channelz_pb2_grpc.ChannelzStub(channel)
                sockets = await channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=root)
                return metrics.text + str(sockets)

    tried = matrix(callers, issuer)
    said = asyncio.run(main())
    assert said.count("request finished") > 20 and "identity_refusals_total" in said
    given = {value.partition(" ")[2].strip() for _, headers, *_ in tried for _, value in headers}
    secrets = {*callers.keys.values(), *(value for value in given if len(value) > 8)}
    secrets |= {hash_of(key) for key in callers.keys.values()}
    secrets |= {part for value in secrets if value.count(".") == 2 for part in value.split(".")[1:] if part}
    assert len(secrets) > 20
    assert [secret for secret in secrets if secret in said] == []
