"""The real gateway on free loopback ports over fake tokenizer tiers, with clients for both of its sides."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from prometheus_client import CollectorRegistry

from gateway.server import Gateway
from gateway.settings import GatewaySettings
from tests.fakes.live_tokenizer_tier import LiveTokenizerTier
from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tokenwire.channels import aio_channel
from tokenwire.routing.discovery import Resolve, resolve_all
from tokenwire.tls import ClientTls
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc


@dataclass
class LiveGateway:
    server: Gateway
    registry: CollectorRegistry
    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    tls: ClientTls | None = None
    """How its clients call."""

    @property
    def stub(self) -> Any:
        return gateway_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.server.grpc.port}"

    @property
    def http_url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.server.http.port}"

    async def until(self, condition: Any) -> None:
        """Wait until something is true; at most 10 s."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    async def until_ready(self) -> None:
        await self.until(lambda: self.server.backends.ready)

    async def until_idle(self) -> None:
        """Wait until no prompt is open, then check that what is counted adds up."""
        await self.until(lambda: self.server.backends.num_open == 0)
        self.server.backends.room.check_integrity()

    def count(self, api: str, outcome: str) -> float:
        """Finished requests in the metrics."""
        labels = {"api": api, "outcome": outcome}
        return self.registry.get_sample_value("tokenwire_gateway_requests_total", labels) or 0.0

    async def generate(self, *prompts: str, timeout: float | None = None, **fields: Any) -> list[Any]:
        """Everything that a Generate call answers."""
        call = self.stub.Generate(generate_request(*prompts, **fields), timeout=timeout)
        return [response async for response in call]


def generate_request(*prompts: str, **fields: Any) -> gateway_pb2.GenerateRequest:
    return gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text=text) for text in prompts], **fields)


def client_context(tls: ClientTls | None) -> ssl.SSLContext | bool:
    """What httpx takes as `verify`."""
    if tls is None:
        return False  # nothing to check, and no file of authorities to read
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


@asynccontextmanager
async def live_gateway(
    *tiers: FakeTokenizerTier | LiveTokenizerTier,
    wait: bool = True,
    tls: ClientTls | None = None,
    resolve: Resolve = resolve_all,
    **settings: Any,
) -> AsyncIterator[LiveGateway]:
    targets = ",".join(tier.target for tier in tiers) or "127.0.0.1:1"
    values = {"port": 0, "http_port": 0, "metrics_port": 0, "tokenizer_targets": targets, "drain_timeout_s": 1.0}
    registry = CollectorRegistry()
    server = Gateway(GatewaySettings(**{**values, **settings}), registry=registry, resolve=resolve)
    await server.start()
    url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.http.port}"
    async with (
        aio_channel(f"127.0.0.1:{server.grpc.port}", tls) as channel,
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False, verify=client_context(tls)) as http,
    ):
        live = LiveGateway(server, registry, channel, http, tls)
        try:
            if wait:
                await live.until_ready()
            yield live
        finally:
            await http.aclose()
            await channel.close()  # who has a session open has gone, or it would be waited for
            if not server.generation.draining:
                await server.drain()


@asynccontextmanager
async def gateway_over_fake(**settings: Any) -> AsyncIterator[tuple[FakeTokenizerTier, LiveGateway]]:
    """One fake tier and a gateway over it."""
    async with fake_tokenizer_tier() as tier, live_gateway(tier, **settings) as live:
        yield tier, live
