"""Connections to the HTTP port over TLS that never get as far as a request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from tests.fakes.certificates import Certificates
from tests.fakes.live_gateway import LiveGateway, client_context, live_gateway
from tests.fakes.raw_http import connected
from tests.fakes.tokenizer_tier import fake_tokenizer_tier

CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The beginning of one."""
REFUSALS = "tokenwire_gateway_http_refusals_total"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ca")


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    found: Callable[[Any], None] = request.param
    return found


@asynccontextmanager
async def gateway(certificates: Certificates, **settings: Any) -> AsyncIterator[LiveGateway]:
    async with fake_tokenizer_tier() as tier:
        async with live_gateway(tier, tls=certificates.client(), **certificates.server(), **settings) as live:
            yield live


async def until_closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(-1) == b""


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO], ids=["nothing", "a beginning"])
def test_a_handshake_that_does_not_end_is_given_up(
    certificates: Certificates, run: Callable[[Any], None], said: bytes
) -> None:
    async def main() -> None:
        async with gateway(certificates, header_timeout_s=0.3) as live, connected(live) as (reader, writer):
            writer.write(said)
            await until_closed(reader)
            assert (await live.http.get("/healthz")).status_code == 200

    run(main())


def test_handshakes_count_as_connections(certificates: Certificates, run: Callable[[Any], None]) -> None:
    async def another(live: LiveGateway) -> int:
        verify = client_context(live.tls)
        async with httpx.AsyncClient(base_url=live.http_url, verify=verify, trust_env=False) as http:
            return (await http.get("/healthz")).status_code

    async def main() -> None:
        async with gateway(certificates, max_connections=3) as live:
            assert (await live.http.get("/healthz")).status_code == 200
            async with connected(live), connected(live) as (_, writer):
                writer.write(CLIENT_HELLO)
                async with connected(live) as (reader, _):
                    await until_closed(reader)
                with pytest.raises(httpx.TransportError):
                    await another(live)
                assert live.registry.get_sample_value(REFUSALS, {"reason": "too_many_connections"}) == 2
                assert (await live.http.get("/healthz")).status_code == 200  # on the connection that it has
            async with asyncio.timeout(10):
                status = 0
                while status != 200:
                    with contextlib.suppress(httpx.TransportError):
                        status = await another(live)

    run(main())


def test_a_gateway_that_drains_waits_for_no_handshake(certificates: Certificates, run: Callable[[Any], None]) -> None:
    async def main() -> None:
        async with gateway(certificates, header_timeout_s=600.0) as live, connected(live) as (reader, _):
            assert (await live.http.get("/healthz")).status_code == 200
            await live.server.drain()
            await until_closed(reader)

    run(main())


def test_a_gateway_that_drains_lets_nobody_new_connect(certificates: Certificates, run: Callable[[Any], None]) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier:
            settings = {**certificates.server(), "drain_timeout_s": 20.0}
            async with live_gateway(tier, tls=certificates.client(), **settings) as live:
                running = asyncio.ensure_future(live.generate("!step a"))
                await tier.until(lambda: tier.num_running == 1)
                draining = asyncio.ensure_future(live.server.drain())
                async with asyncio.timeout(10):
                    refused = False
                    while not refused:
                        try:
                            async with connected(live):
                                await asyncio.sleep(0.01)
                        except ConnectionRefusedError:
                            refused = True
                assert not draining.done() and not running.done(), "what was asked before is still answered"
                tier.step()
                assert "".join(response.delta.text for response in await running) == "a"
                await draining

    run(main())
