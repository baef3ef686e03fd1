"""Envoy beside every tier, with the files of deploy/envoy: mutual TLS between tiers that speak plain gRPC.

A gateway and its sidecar, two tokenizer tiers with theirs, two model tiers with theirs. Sessions go straight to each
replica's sidecar, with the certificate of the tier that opens them; streams of one request each go out through the
caller's sidecar.
"""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.envoy import Envoy, running_envoy
from tests.e2e.test_envoy_edge import SHORT, read
from tests.e2e.tier_processes import TierProcesses
from tests.waiting import serves, wait_for
from tokenwire.addresses import free_ports
from tokenwire.channels import aio_channel, sync_channel
from tokenwire.client import AsyncClient, ClientTls, FinishReason
from tokenwire.development_ca import DevelopmentCa
from tokenwire.health import is_serving
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc

pytestmark = [pytest.mark.model, pytest.mark.extended]

LONG = {"max_tokens": 100, "ignore_eos": True, "temperature": 0.0}


@dataclass
class Mesh:
    target: str
    """The gateway's."""
    certificates: Path
    caller: Envoy
    tokenizers: list[Envoy]
    models: list[Envoy]
    tokenizer_processes: list[subprocess.Popen[bytes]]

    def tls(self, name: str = "") -> ClientTls:
        """A client that knows the CA; with a name it shows that certificate."""
        pair = [str(self.certificates / f"{name}{end}.pem") for end in ("", "-key")] if name else ["", ""]
        return ClientTls(str(self.certificates / "ca.pem"), *pair)


def sidecar(folder: Path, certificates: Path, tier: str, ports: dict[int, int], **backends: list[int]) -> Envoy:
    """One with this tier's certificate."""
    own = folder / "certs"
    own.mkdir(parents=True)
    for source, target in ((f"{tier}.pem", "tier.pem"), (f"{tier}-key.pem", "tier-key.pem"), ("ca.pem", "ca.pem")):
        (own / target).write_bytes((certificates / source).read_bytes())
    every = {port: ports.get(port) or free_ports(1)[0] for port in (15052, 15053, 16052, 16053)}
    return Envoy("sidecar", folder, every, backends)


def upstream_tls(certificates: Path, own: str, below: str) -> list[str]:
    """Flags of a tier that shows its own certificate to the tier below, and asks for that one's."""
    pair = (str(certificates / f"{own}.pem"), "--upstream-tls-key", str(certificates / f"{own}-key.pem"))
    ca = str(certificates / "ca.pem")
    return ["--upstream-tls-ca", ca, "--upstream-tls-name", below, "--upstream-tls-certificate", *pair]


@pytest.fixture(scope="module")
def mesh(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    certificates = folder / "certificates"
    authority = DevelopmentCa.make(certificates)
    for name in ("gateway", "tokenizer", "model", "stranger"):
        authority.issue(name, names=(name, "localhost", "127.0.0.1"))
    model_ports, tokenizer_ports, inner_models, inner_tokenizers = (free_ports(2) for _ in range(4))
    gateway, http = free_ports(2)
    with ExitStack() as stack:
        tiers = stack.enter_context(TierProcesses(folder))

        def beside(name: str, tier: str, ports: dict[int, int], **backends: list[int]) -> Envoy:
            return stack.enter_context(running_envoy(sidecar(folder / name, certificates, tier, ports, **backends)))

        models, tokenizers, processes = [], [], []
        for number, (port, inner) in enumerate(zip(model_ports, inner_models, strict=True)):
            models.append(beside(f"model-{number}", "model", {15053: port}, local_model=[inner]))
            tiers.start("model_svc", "--engine", "mock", "--port", str(inner), "--metrics-port", "0")
        targets = ",".join(f"127.0.0.1:{port}" for port in model_ports)
        upstream = ["--model-targets", targets, *upstream_tls(certificates, "tokenizer", "model")]
        for number, (port, inner) in enumerate(zip(tokenizer_ports, inner_tokenizers, strict=True)):
            tokenizers.append(
                beside(
                    f"tokenizer-{number}", "tokenizer", {15052: port}, local_tokenizer=[inner], models=model_ports
                )
            )  # fmt: skip
            processes.append(tiers.start("tokenizer_svc", "--port", str(inner), "--metrics-port", "0", *upstream))
        for inner in inner_tokenizers:
            wait_for(lambda inner=inner: serves(f"127.0.0.1:{inner}"))  # type: ignore[misc]
        caller = beside("gateway", "gateway", {}, tokenizers=tokenizer_ports)
        caller.until_healthy("tokenizers", *tokenizer_ports)
        for envoy in tokenizers:
            envoy.until_healthy("models", *model_ports)
        tiers.start(
            "gateway", "--port", str(gateway), "--http-port", str(http), "--metrics-port", "0",
            "--tokenizer-targets", ",".join(f"127.0.0.1:{port}" for port in tokenizer_ports),
            *upstream_tls(certificates, "gateway", "tokenizer"),
        )  # fmt: skip
        wait_for(lambda: serves(f"127.0.0.1:{gateway}"))
        yield Mesh(f"127.0.0.1:{gateway}", certificates, caller, tokenizers, models, processes)


def num_streams(envoy: Envoy, cluster: str) -> int:
    return sum(host["num_streams"] for host in envoy.hosts(cluster).values())


def test_requests_reach_every_replica(mesh: Mesh) -> None:
    """By Sessions: which tier a request took shows in how many streams there are, and in what Envoy passed on."""

    async def main() -> None:
        async with AsyncClient(mesh.target) as client:
            reasons = await asyncio.gather(*(read(client, f"Number {i}", **LONG) for i in range(32)))
        assert set(reasons) == {FinishReason.LENGTH}

    def num_bytes(envoy: Envoy, cluster: str) -> float:
        return envoy.stat(f"cluster.{cluster}.upstream_cx_rx_bytes_total")

    pairs = [(envoy, "local_tokenizer") for envoy in mesh.tokenizers]
    pairs += [(envoy, "local_model") for envoy in mesh.models]
    before = [num_bytes(*pair) for pair in pairs]
    asyncio.run(main())
    grown = [num_bytes(*pair) - count for pair, count in zip(pairs, before, strict=True)]
    sessions = [num_streams(*pair) for pair in pairs]
    print(f"\n32 streams: {grown[:2]} bytes through the tokenizer tiers, {grown[2:]} through the model tiers")
    print(f"streams through their sidecars so far, health checks not among them: {sessions}")
    assert min(grown[:2]) > 0.2 * sum(grown[:2]) and min(grown[2:]) > 0.2 * sum(grown[2:])


def test_streams_of_one_request_each_are_balanced(mesh: Mesh) -> None:
    """As somebody calls model tiers who holds no Session: through a tokenizer tier's sidecar."""

    async def main() -> None:
        async with aio_channel(f"127.0.0.1:{mesh.tokenizers[0].port(16053)}") as channel:
            stub: Any = model_pb2_grpc.ModelServiceStub(channel)

            async def one(number: int) -> int:
                request = model_pb2.TokenRequest(token_ids=[number + 1, 2, 3])
                request.options.stop.max_tokens = 2
                request.options.stop.ignore_eos = True
                call = stub.Generate(model_pb2.ModelServiceGenerateRequest(request=request))
                reasons = [response.finish.reason async for response in call if response.HasField("finish")]
                return int(reasons[0])

            reasons = [reason for _ in range(8) for reason in await asyncio.gather(*map(one, range(16)))]
        assert set(reasons) == {common_pb2.FINISH_REASON_LENGTH}

    grown = growth(mesh.tokenizers[0], "models", lambda: asyncio.run(main()))
    print(f"\n128 streams of one request each: {grown} by model tier")
    assert sum(grown) == 128 and min(grown) >= 128 * 0.35


def test_unary_calls_are_balanced(mesh: Mesh) -> None:
    def main() -> None:
        with sync_channel(f"127.0.0.1:{mesh.caller.port(16052)}") as channel:
            stub: Any = tokenizer_pb2_grpc.TokenizerServiceStub(channel)  # type: ignore[no-untyped-call]
            for number in range(64):
                (encoding,) = stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=[f"Number {number}"])).encodings
                assert len(encoding.token_ids) >= 2

    grown = growth(mesh.caller, "tokenizers", main)
    assert sum(grown) == 64 and min(grown) >= 64 * 0.2


def growth(envoy: Envoy, cluster: str, run: Callable[[], None]) -> list[int]:
    """Streams that each backend got meanwhile."""
    before = [host["num_streams"] for host in envoy.hosts(cluster).values()]
    run()
    return [host["num_streams"] - count for host, count in zip(envoy.hosts(cluster).values(), before, strict=True)]


@pytest.mark.parametrize("name", ["", "stranger", "gateway", "model"])
def test_a_model_tier_is_reached_by_tokenizer_tiers_alone(mesh: Mesh, name: str) -> None:
    target = f"localhost:{mesh.models[0].port(15053)}"
    assert is_serving(target, 5.0, mesh.tls("tokenizer"))
    with pytest.raises(grpc.RpcError):
        is_serving(target, 2.0, mesh.tls(name))


def test_a_tokenizer_tier_that_drains_gets_nothing_new(mesh: Mesh) -> None:
    """It ends what it has; its Sessions move to the other one."""

    async def main() -> None:
        async with AsyncClient(mesh.target) as client:
            tasks = [asyncio.create_task(read(client, f"Number {i}", **LONG)) for i in range(16)]
            await asyncio.sleep(0.5)
            mesh.tokenizer_processes[1].terminate()
            reasons = list(await asyncio.gather(*tasks))
            await asyncio.to_thread(mesh.tokenizer_processes[1].wait, 30)
            for number in range(16):
                reasons.append(await read(client, f"Number {number}", **SHORT))
        assert set(reasons) == {FinishReason.LENGTH}, reasons

    asyncio.run(main())
