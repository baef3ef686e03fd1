"""TLS at the gateway and on every hop below it, with the real tiers on the loopback."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.certificates import Certificates
from tests.fakes.live_gateway import LiveGateway, client_context, generate_request, live_gateway
from tests.fakes.live_model_tier import live_model_tier
from tests.fakes.live_tokenizer_tier import live_tokenizer_tier
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tests.fakes.tokenizers_trained import write_folder
from tokenwire.client import AsyncClient
from tokenwire.errors import Unavailable
from tokenwire.tls import ClientTls


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ca")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("trained") / "tiny-model")


@asynccontextmanager
async def stack(certificates: Certificates, folder: Path, **gateway: Any) -> AsyncIterator[LiveGateway]:
    """All three tiers, each of which asks its callers for a certificate."""
    ask = certificates.server("model", ask=True)
    async with live_model_tier(served_name=folder.name, **ask, **{"mock_step_ms": 5.0}) as model:
        ask = certificates.server("tokenizer", ask=True)
        upstream = certificates.upstream("tokenizer-caller")
        targets = {"model_targets": f"127.0.0.1:{model.port}"}
        async with live_tokenizer_tier(folder, wait=False, **ask, **upstream, **targets) as tokenizer:
            await tokenizer.until_ready(1)
            client = certificates.client("client")
            below = {**certificates.upstream("gateway-caller"), **certificates.server("gateway", ask=True), **gateway}
            async with live_gateway(tokenizer, tls=client, **below) as live:
                yield live


def test_an_answer_crosses_every_hop_over_mutual_tls(certificates: Certificates, folder: Path) -> None:
    async def main() -> None:
        async with stack(certificates, folder) as live:
            answers = await live.generate("hello there", options={"stop": {"max_tokens": 8}})
            assert answers[-1].finish.usage.completion_tokens == 8
            response = await live.http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 5})
            assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 5
            async with AsyncClient(live.grpc_target, tls=certificates.client("someone")) as client:
                assert [card.name for card in await client.models()] == [folder.name]

    asyncio.run(main())


def test_new_certificates_on_every_hop_cut_no_stream(certificates: Certificates, folder: Path) -> None:
    """Everything is replaced while a gRPC stream, an SSE stream and all Sessions below run."""

    async def main() -> None:
        async with stack(certificates, folder) as live:
            body = {"prompt": "hello", "max_tokens": 150, "stream": True, "ignore_eos": True}
            options = {"stop": {"max_tokens": 150, "ignore_eos": True}}
            call = live.stub.Generate(generate_request("hello", options=options))
            answers = aiter(call)
            assert (await anext(answers)).delta.num_tokens
            async with live.http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                first = await anext(lines)
                for name in ("model", "tokenizer", "gateway"):
                    certificates.server(name)
                for name in ("tokenizer-caller", "gateway-caller"):
                    certificates.upstream(name)
                before = await shown(live)
                assert await shown(live) == before
                *_, last = [response async for response in answers]
                texts = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
            assert first.startswith("data: ") and texts[-1]["choices"][0]["finish_reason"] == "length"
            assert last.finish.usage.completion_tokens == 150
            assert await shown(live) == before
            certificates.server("gateway")
            assert await shown(live) != before
            answers = await live.generate("again", options={"stop": {"max_tokens": 3}})
            assert answers[-1].finish.usage.completion_tokens == 3

    asyncio.run(main())


async def shown(live: LiveGateway) -> tuple[str, str]:
    """The serial numbers that new connections to the HTTP and gRPC ports are shown."""
    found = []
    for port in (live.server.http.port, live.server.grpc.port):
        context = client_context(live.tls)
        assert isinstance(context, ssl.SSLContext)
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        found.append(writer.get_extra_info("peercert")["serialNumber"])
        writer.close()
    return found[0], found[1]


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ("nobody", "showed no certificate"),
        ("late", "certificate has expired"),
        ("stranger", "certificate verify failed"),
        ("plain", "spoke plain HTTP"),
    ],
)
def test_http_clients_are_refused_and_the_log_says_why(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture, client: str, said: str
) -> None:
    stranger = Certificates(tmp_path / "other").client("stranger")
    clients = {
        "nobody": certificates.client(),
        "late": certificates.client("late", days=-1),
        "stranger": ClientTls(certificates.ca, stranger.certificate, stranger.key),
        "plain": None,
    }

    async def main() -> None:
        settings = certificates.server(ask=True)
        async with fake_tokenizer_tier() as tier, live_gateway(tier, tls=certificates.client("a"), **settings) as live:
            assert (await live.http.get("/healthz")).status_code == 200
            tls = clients[client]
            scheme = "http" if tls is None else "https"
            url = f"{scheme}://127.0.0.1:{live.server.http.port}"
            async with httpx.AsyncClient(base_url=url, verify=client_context(tls), trust_env=False) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get("/healthz")
            await live.until(lambda: any("TLS handshake failed" in record.message for record in caplog.records))

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    (record,) = [record for record in caplog.records if "TLS handshake failed" in record.message]
    assert said in str(record.__dict__), record.__dict__


def test_a_gateway_that_is_not_trusted_below_says_so(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tier below is of another CA: readiness and the log name the reason."""

    async def main() -> None:
        other = Certificates(tmp_path / "other")
        async with fake_tokenizer_tier(tls=other.server()) as tier:
            async with live_gateway(tier, wait=False, upstream_tls_ca=certificates.ca) as live:
                await live.until(lambda: "no CA that is trusted" in live.server.backends.missing())
                response = await live.http.get("/readyz")
                assert response.status_code == 503 and "no CA that is trusted" in response.text
                with pytest.raises(Unavailable):
                    await live.server.backends.list_models(timeout_s=10, request_id="a")

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert sum("no CA that is trusted" in record.message for record in caplog.records) == 1
