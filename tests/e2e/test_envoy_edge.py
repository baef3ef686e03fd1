"""Envoy at the edge, with the files of deploy/envoy, before two gateways with TLS: who gets what, what is lost."""

import asyncio
import itertools
import json
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.e2e.envoy import Envoy, running_envoy
from tests.e2e.tier_processes import TierProcesses
from tests.waiting import serves, wait_for
from tokenwire.addresses import free_ports
from tokenwire.channels import aio_channel, sync_channel
from tokenwire.client import AsyncClient, ClientTls, Finished, FinishReason, TextDelta
from tokenwire.development_ca import DevelopmentCa
from tokenwire.errors import Internal, TokenwireError, Unavailable
from tokenwire.health import is_serving
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, tokenizer_pb2

pytestmark = [pytest.mark.model, pytest.mark.extended]

NUM_STREAMS = 32
LONG = {"max_tokens": 150, "ignore_eos": True, "temperature": 0.0}
"""Three seconds and more, at 20 ms a token."""
SHORT = {"max_tokens": 2, "ignore_eos": True, "temperature": 0.0}
CUT = (Unavailable, Internal)
"""What a client sees: Envoy resets the streams of a backend that is gone, which gRPC calls INTERNAL."""


@dataclass
class Edge:
    envoy: Envoy
    tiers: TierProcesses
    certificates: Path
    gateway_flags: list[str]
    gateways: dict[int, subprocess.Popen[bytes]]
    """By their gRPC port."""
    http_ports: dict[int, int]
    plain_port: int
    """A server without TLS that is healthy."""

    @property
    def target(self) -> str:
        return f"localhost:{self.envoy.port(8443)}"

    @property
    def tls(self) -> ClientTls:
        return ClientTls(str(self.certificates / "ca.pem"))

    def client(self) -> AsyncClient:
        return AsyncClient(self.target, tls=self.tls)

    def http(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))
        return httpx.Client(base_url=f"https://{self.target}", verify=context, timeout=30, trust_env=False)

    def own_tls(self, name: str) -> ClientTls:
        """A client of the gateways themselves, with this certificate."""
        pair = (str(self.certificates / f"{name}.pem"), str(self.certificates / f"{name}-key.pem"))
        return ClientTls(str(self.certificates / "ca.pem"), *pair)

    def start_gateway(self, port: int) -> None:
        self.gateways[port] = self.tiers.start(
            "gateway", "--port", str(port), "--http-port", str(self.http_ports[port]), *self.gateway_flags
        )
        wait_for(lambda: serves(f"localhost:{port}", self.own_tls("edge")))

    def num_streams(self) -> dict[int, int]:
        return {port: host["num_streams"] for port, host in self.envoy.hosts("gateway_grpc").items()}

    def restore(self, *names: str) -> None:
        """These files as they were at first."""
        self.envoy.backends = {"gateway_grpc": list(self.gateways), "gateway_http": list(self.http_ports.values())}
        for name in names:
            self.envoy.replace(f"edge/{name}.yaml")

    def until_healthy(self, *ports: int) -> None:
        self.envoy.until_healthy("gateway_grpc", *ports)
        self.envoy.until_healthy("gateway_http", *(self.http_ports[port] for port in ports))


@pytest.fixture(scope="module")
def edge(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    certificates = folder / "envoy" / "certs"
    authority = DevelopmentCa.make(certificates)
    for name in ("gateway", "edge", "stranger"):
        authority.issue(name, names=(name, "localhost", "127.0.0.1"))
    model, tokenizer, *ports = free_ports(6)
    gateways, http_ports = ports[:2], dict(zip(ports[:2], ports[2:], strict=True))
    with ExitStack() as stack:
        tiers = stack.enter_context(TierProcesses(folder))
        tiers.start("model_svc", "--engine", "mock", "--port", str(model), "--metrics-port", "0")
        tiers.start(
            "tokenizer_svc", "--port", str(tokenizer), "--metrics-port", "0", "--model-targets", f"127.0.0.1:{model}"
        )
        wait_for(lambda: serves(f"127.0.0.1:{tokenizer}"))
        flags = [
            "--metrics-port", "0", "--tokenizer-targets", f"127.0.0.1:{tokenizer}",
            "--tls-certificate", str(certificates / "gateway.pem"), "--tls-key", str(certificates / "gateway-key.pem"),
            "--tls-client-ca", str(certificates / "ca.pem"),
        ]  # fmt: skip
        backends = {"gateway_grpc": gateways, "gateway_http": list(http_ports.values())}
        envoy = Envoy("edge", folder / "envoy", {8443: free_ports(1)[0]}, backends)
        running = Edge(envoy, tiers, certificates, flags, {}, http_ports, tokenizer)
        for port in gateways:
            running.start_gateway(port)
        stack.enter_context(running_envoy(envoy))
        running.until_healthy(*gateways)
        yield running


@pytest.fixture(autouse=True)
def two_healthy_gateways(edge: Edge) -> None:
    edge.until_healthy(*edge.gateways)


async def read(client: AsyncClient, prompt: str, seen: list[str] | None = None, **options: Any) -> FinishReason:
    """One stream to its end; raises what ended it otherwise. `seen` gets its pieces."""
    reason: FinishReason | None = None
    async for event in client.generate(prompt, **options):
        if isinstance(event, Finished):
            if event.terminal.error is not None:
                raise event.terminal.error
            reason = event.terminal.reason
        elif seen is not None and isinstance(event, TextDelta):
            seen.append(event.text)
    assert reason is not None
    return reason


async def start_all(client: AsyncClient, num_streams: int) -> list[asyncio.Task[FinishReason]]:
    """Long streams, each of which has begun."""
    pieces: list[list[str]] = [[] for _ in range(num_streams)]
    tasks = [asyncio.create_task(read(client, f"Story {i}", pieces[i], **LONG)) for i in range(num_streams)]
    async with asyncio.timeout(30):
        while not all(pieces):
            await asyncio.sleep(0.01)
    return tasks


def test_streams_of_one_connection_are_balanced(edge: Edge) -> None:
    async def main() -> None:
        async with edge.client() as client:
            for _ in range(8):
                await asyncio.gather(*(read(client, f"Number {i}", **SHORT) for i in range(NUM_STREAMS)))

    before = edge.num_streams()
    asyncio.run(main())
    per_gateway = [count - before[port] for port, count in edge.num_streams().items()]
    print(f"\n{8 * NUM_STREAMS} streams on one connection of a client: {per_gateway} by gateway")
    assert sum(per_gateway) >= 8 * NUM_STREAMS  # health checks are not counted here
    assert min(per_gateway) >= 8 * NUM_STREAMS * 0.4


def test_http_and_grpc_web_pass_the_same_port(edge: Edge) -> None:
    request = tokenizer_pb2.TokenizeRequest(texts=["Hello world"])
    framed = b"\0" + struct.pack(">I", request.ByteSize()) + request.SerializeToString()
    with edge.http() as http:
        (model,) = http.get("/v1/models").json()["data"]
        body = {"model": model["id"], "prompt": "Once", "max_tokens": 3, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        assert response.status_code == 200 and lines[-1] == "data: [DONE]"
        assert http.get("/edge/healthz").status_code == 200
        assert http.get("/metrics").status_code == http.get("/live").status_code == 404
        own = http.get("/v1/models", headers={"x-request-id": "a-callers-own"})
        assert own.headers["x-request-id"] == "a-callers-own"
        answer = http.post(
            "/tokenwire.v1.GenerationService/Tokenize",
            content=framed,
            headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
        )
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    length = int.from_bytes(answer.content[1:5], "big")
    message = tokenizer_pb2.TokenizeResponse.FromString(answer.content[5 : 5 + length])
    assert len(message.encodings[0].token_ids) >= 2
    assert answer.content[5 + length] == 0x80 and b"grpc-status:0" in answer.content  # the trailers are the last frame


def test_connect_passes_to_the_http_port(edge: Edge) -> None:
    path = "/tokenwire.v1.GenerationService/"
    chat = {"conversation": {"messages": [{"role": "user", "content": "hi"}]}, "options": {"stop": {"maxTokens": 4}}}
    content = json.dumps(chat).encode()
    with edge.http() as http:
        unary = http.post(f"{path}Tokenize", json={"texts": ["Hello world"]})
        refused = http.post(f"{path}Tokenize", json={})
        framed = struct.pack(">BI", 0, len(content)) + content
        streamed = http.post(f"{path}Chat", content=framed, headers={"content-type": "application/connect+json"})
    assert unary.status_code == 200 and len(unary.json()["encodings"][0]["tokenIds"]) >= 2
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
    assert streamed.status_code == 200 and streamed.content.endswith(b"\x02\x00\x00\x00\x02{}")


def test_a_deadline_passes(edge: Edge) -> None:
    async def main() -> None:
        async with aio_channel(edge.target, edge.tls) as channel:
            stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)
            request = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text="Once upon a time")])
            request.options.stop.ignore_eos = True
            responses = [response async for response in stub.Generate(request, timeout=1.0)]
        finish = responses[-1].finish
        assert finish.reason == common_pb2.FINISH_REASON_DEADLINE
        assert finish.usage.completion_tokens > 5, "with what there was until then"

    asyncio.run(main())


def test_a_silent_session_stays_open(edge: Edge) -> None:
    """Past the 15 seconds after which Envoy ends a request by default."""

    async def main() -> None:
        async with aio_channel(edge.target, edge.tls) as channel:
            stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)
            call = stub.Session()
            await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
            assert (await call.read()).hello.protocol_version == 1
            await ask(call, 1)
            await asyncio.sleep(17)
            await ask(call, 2)
            call.cancel()

    asyncio.run(main())


async def ask(call: Any, handle: int) -> None:
    """A request on a Session, to its end."""
    request = tokenizer_pb2.TextRequest(text="Once upon a time")
    request.options.stop.max_tokens = 3
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=handle, request=request)]))
    async with asyncio.timeout(10):
        while True:
            frame = await call.read()
            assert frame is not grpc.aio.EOF, await call.details()
            if any(finish.handle == handle for finish in frame.finishes):
                return


def test_a_reload_cuts_nothing(edge: Edge) -> None:
    """New routes, a changed listener, another set of gateways and new certificates, one after the other under load."""
    kept = list(edge.gateways)[1]

    async def main() -> None:
        async with edge.client() as client, aio_channel(edge.target, edge.tls) as channel:
            call = gateway_pb2_grpc.GenerationServiceStub(channel).Session()  # type: ignore[no-untyped-call]
            await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
            await call.read()
            tasks = await start_all(client, NUM_STREAMS)
            await asyncio.to_thread(change)
            reasons = await asyncio.gather(*tasks, return_exceptions=True)
            num_cut = sum(reason is not FinishReason.LENGTH for reason in reasons)
            print(f"\n{NUM_STREAMS} streams and a Session through four reloads: {num_cut} cut")
            assert not num_cut, reasons
            await ask(call, 1)
            call.cancel()

    def change() -> None:
        edge.envoy.replace("edge/routes.yaml", lambda text: text.replace("path: /metrics", "path: /hidden"))
        with edge.http() as http:
            assert http.get("/hidden").status_code == 404
            assert http.get("/metrics").status_code == 200
        edge.envoy.replace("edge/listeners.yaml", lambda text: text.replace("/edge/healthz", "/edge/alive"))
        with edge.http() as http:
            assert http.get("/edge/alive").status_code == 200
        edge.envoy.backends = {"gateway_grpc": [kept], "gateway_http": [edge.http_ports[kept]]}
        edge.envoy.replace("edge/clusters.yaml")
        edge.until_healthy(kept)
        serial = presented(edge)
        DevelopmentCa.load(edge.certificates).issue("edge", names=("edge", "localhost", "127.0.0.1"))
        edge.envoy.until(lambda: presented(edge) != serial, "the new certificate is not shown")

    try:
        asyncio.run(main())
    finally:
        edge.restore("clusters", "listeners", "routes")


def presented(edge: Edge) -> str:
    """The certificate that Envoy shows now."""
    return ssl.get_server_certificate(("localhost", edge.envoy.port(8443)))


def test_gateways_refuse_who_shows_no_certificate(edge: Edge) -> None:
    port = next(iter(edge.gateways))
    assert is_serving(f"localhost:{port}", 2.0, edge.own_tls("edge"))
    with pytest.raises(grpc.RpcError), sync_channel(f"localhost:{port}", edge.tls) as channel:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=2)


def test_gateways_without_tls_have_a_file_of_their_own(edge: Edge) -> None:
    edge.envoy.backends = {"gateway_grpc": [edge.plain_port], "gateway_http": []}
    try:
        edge.envoy.replace("edge/clusters.yaml", lambda _: edge.envoy.text("edge/clusters-without-tls.yaml"))
        edge.envoy.until_healthy("gateway_grpc", edge.plain_port)
    finally:
        edge.restore("clusters")


def test_floods_are_refused(edge: Edge) -> None:
    def small(text: str) -> str:
        return text.replace("max_tokens: 400", "max_tokens: 20").replace("tokens_per_fill: 200", "tokens_per_fill: 1")

    async def main() -> list[str]:
        codes: list[str] = []
        async with edge.client() as client:
            for _ in range(40):
                try:
                    await client.models()
                    codes.append("ok")
                except TokenwireError as error:
                    codes.append(error.code)
        return codes

    edge.envoy.replace("edge/routes.yaml", small)
    try:
        codes = asyncio.run(main())
    finally:
        edge.envoy.replace("edge/routes.yaml")
    assert codes[0] == "ok" and set(codes) == {"ok", "RESOURCE_EXHAUSTED"}
    assert codes.count("ok") >= 20


async def trickle(client: AsyncClient, stop: asyncio.Event, lost: list[str]) -> int:
    """Short streams one after the other, until told; how many."""
    for number in itertools.count():
        if stop.is_set():
            return number
        try:
            await read(client, f"Number {number}", **SHORT)
        except CUT as error:
            lost.append(error.message)
    raise AssertionError


def test_a_gateway_that_drains_loses_nothing(edge: Edge) -> None:
    """Neither what runs there, nor what comes before its health has been asked again."""
    draining = next(iter(edge.gateways))

    async def main() -> None:
        async with edge.client() as client:
            before = edge.num_streams()[draining]
            tasks = [asyncio.create_task(read(client, f"Story {i}", **{**LONG, "max_tokens": 60})) for i in range(16)]
            stop, lost = asyncio.Event(), list[str]()
            trickles = [asyncio.create_task(trickle(client, stop, lost)) for _ in range(4)]
            await asyncio.sleep(0.3)
            assert edge.num_streams()[draining] > before
            edge.gateways[draining].terminate()
            await asyncio.to_thread(edge.gateways[draining].wait, 30)
            await asyncio.sleep(0.3)
            stop.set()
            number = sum(await asyncio.gather(*trickles))
            reasons = await asyncio.gather(*tasks, return_exceptions=True)
        num_cut = sum(reason is not FinishReason.LENGTH for reason in reasons)
        print(f"\ndrained 1 of 2 gateways: {num_cut} of 16 running streams cut; {len(lost)} of {number} lost meanwhile")
        assert not num_cut and not lost, (reasons, lost)

    try:
        asyncio.run(main())
    finally:
        edge.start_gateway(draining)


def test_a_killed_gateway_is_left_out(edge: Edge) -> None:
    killed, kept = edge.gateways
    lost_late: list[str] = []
    num_late = itertools.count()

    async def main() -> None:
        async with edge.client() as client:
            await asyncio.gather(*(read(client, "Once", **SHORT) for _ in range(NUM_STREAMS)))  # both are connected
            tasks = await start_all(client, NUM_STREAMS)
            stop, lost_early = asyncio.Event(), list[str]()
            trickles = [asyncio.create_task(trickle(client, stop, lost_early)) for _ in range(4)]
            await asyncio.sleep(0.3)
            edge.gateways[killed].kill()
            killed_s = time.monotonic()
            await asyncio.to_thread(
                edge.envoy.until, lambda: not edge.envoy.hosts("gateway_grpc")[killed]["healthy"], "not left out"
            )
            left_out_s = time.monotonic() - killed_s
            ejected = edge.envoy.hosts("gateway_grpc")[killed]["ejected"]
            stop.set()
            num_early = sum(await asyncio.gather(*trickles))
            for _ in range(100):
                next(num_late)
                try:
                    await read(client, "Once upon a time", **SHORT)
                except CUT as error:
                    lost_late.append(error.message)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        num_cut = sum(isinstance(end, CUT) for end in ends)
        how = "ejected" if ejected else "by its health"
        print(
            f"\nkilled 1 of 2 gateways: left out after {left_out_s:.2f} s ({how}); {num_cut} of {NUM_STREAMS} running "
            f"streams cut; {len(lost_early)} of {num_early} lost that began before that, {len(lost_late)} of 100 after"
        )
        assert all(end is FinishReason.LENGTH or isinstance(end, CUT) for end in ends), ends
        assert 0 < num_cut < NUM_STREAMS
        assert not lost_late

    try:
        asyncio.run(main())
    finally:
        edge.gateways[killed].kill()
        edge.start_gateway(killed)
    edge.until_healthy(killed, kept)
    assert edge.envoy.stat("cluster.gateway_grpc.outlier_detection.ejections_enforced_total") >= 1
