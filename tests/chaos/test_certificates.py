"""Certificates that are replaced and that run out under open streams: what is open goes on, nobody is started again."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.scenario import Record, Row, probe, serves_again
from tests.chaos.test_clients import ended
from tests.e2e.tier_processes import TierProcesses
from tests.fakes.certificates import Certificates
from tests.fakes.live_gateway import client_context
from tests.waiting import wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.client import AsyncClient
from tokenwire.errors import Unavailable
from tokenwire.status import TLS_FAILED

pytestmark = [pytest.mark.chaos, pytest.mark.model]

NUM_STREAMS = 16
NUM_TOKENS = 1500
"""Of ten milliseconds each, at least: more than is generated until a new certificate is seen."""
AGAIN_WITHIN_S = 30.0


@dataclass
class TlsStack:
    """One tier of each kind, TLS on every hop; tiers ask one another for a certificate, the gateway asks nobody."""

    certificates: Certificates
    port: int

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def renew(self, **issue: object) -> None:
        """New certificates for everybody, of the gateway with these properties."""
        for name in ("model", "tokenizer"):
            self.certificates.server(name)
            self.certificates.upstream(f"{name}-caller")
        self.certificates.server("gateway", **issue)

    async def serial_number(self) -> str:
        """Of the certificate that a new connection is shown. Raises ssl.SSLError for one that is not good."""
        context = client_context(self.certificates.client())
        assert isinstance(context, ssl.SSLContext)
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection("localhost", self.port, ssl=context)
        try:
            return str(writer.get_extra_info("peercert")["serialNumber"])
        finally:
            writer.close()


@pytest.fixture
def stack(model_folder: Path, tmp_path: Path) -> Iterator[TlsStack]:
    certificates = Certificates(tmp_path / "ca")
    model, tokenizer, gateway = free_ports(3)
    model_name = str(model_folder)

    def start(tiers: TierProcesses, module: str, port: int, settings: dict[str, str], **more: str) -> None:
        given = {"port": str(port), "metrics_port": "0", **settings, **more}
        tiers.start(module, *(word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)))

    with TierProcesses(tmp_path) as tiers:
        start(tiers, "model_svc", model, certificates.server("model", ask=True), model=model_name,
              engine="mock", mock_step_ms="10")  # fmt: skip
        below = certificates.server("tokenizer", ask=True) | certificates.upstream("model-caller")
        start(tiers, "tokenizer_svc", tokenizer, below, model=model_name, model_targets=f"localhost:{model}")
        edge = certificates.server("gateway") | certificates.upstream("tokenizer-caller")
        start(tiers, "gateway", gateway, edge, http_port="0", tokenizer_targets=f"localhost:{tokenizer}")
        wait_until_serving(f"localhost:{gateway}", told=tiers.logs, tls=certificates.client())
        yield TlsStack(certificates, gateway)


async def under_streams(stack: TlsStack, suffer: Callable[[], object]) -> tuple[str, object]:
    """Do this while streams are open, and follow them to their end. Returns what came of them, and of it."""
    async with AsyncClient(stack.target, tls=stack.certificates.client()) as client:
        streams = [client.generate(f"Story {n}", max_tokens=NUM_TOKENS, ignore_eos=True) for n in range(NUM_STREAMS)]
        await asyncio.gather(*(anext(aiter(stream)) for stream in streams))
        ends = [asyncio.ensure_future(ended(stream)) for stream in streams]
        result = await suffer()
        assert not any(end.done() for end in ends), "the streams were not open all the time"
        seen = Counter(await asyncio.gather(*ends))
    assert seen == {"LENGTH": NUM_STREAMS}, seen
    return f"{NUM_STREAMS} open streams in full", result


def serving(stack: TlsStack) -> partial:
    return partial(probe, stack.target, stack.certificates.client())


def test_new_certificates_for_every_tier(stack: TlsStack, record: Record) -> None:
    async def renewed() -> float:
        before, began_s = await stack.serial_number(), time.monotonic()
        stack.renew()
        async with asyncio.timeout(AGAIN_WITHIN_S):
            while await stack.serial_number() == before:
                await asyncio.sleep(0.05)
            while not await serving(stack)():
                await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    seen, again_s = asyncio.run(under_streams(stack, renewed))
    expected = f"open streams in full; new ones on the new certificate, within {AGAIN_WITHIN_S:g} s"
    record.rows.append(Row("the certificates of every tier replaced", expected, seen, again_s))


def test_the_certificate_of_the_gateway_runs_out(stack: TlsStack, record: Record) -> None:
    async def ran_out() -> float:
        stack.renew(days=-1)
        with pytest.raises(ssl.SSLError, match="expired"):
            await stack.serial_number()
        async with AsyncClient(stack.target, tls=stack.certificates.client(), max_attempts=1) as late:
            with pytest.raises(Unavailable) as caught:
                await late.models()
        assert caught.value.reason == TLS_FAILED and "expired" in caught.value.message
        settled = asyncio.Event()
        settled.set()
        stack.renew()
        return await serves_again(serving(stack), settled, AGAIN_WITHIN_S)

    seen, again_s = asyncio.run(under_streams(stack, ran_out))
    expected = f"open streams in full, new connections {TLS_FAILED}; new ones after another one, within 30 s"
    seen += f", new connections {TLS_FAILED}"
    record.rows.append(Row("the gateway's certificate runs out, and another one comes", expected, seen, again_s))
