"""What gRPC's own xDS client is told by a small control plane, and what becomes of it: addresses to route to."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import ads
from tests.fakes.ads import ControlPlane, control_plane
from tests.fakes.certificates import Certificates
from tests.fakes.live_gateway import live_gateway
from tests.fakes.live_model_tier import live_model_tier
from tests.fakes.live_tokenizer_tier import live_tokenizer_tier
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tests.fakes.whole_stack import VOCAB_SIZE
from tokenwire.client import AsyncClient
from tokenwire.errors import FailedPrecondition
from tokenwire.routing.discovery import Discovery
from tokenwire.routing.targets import parse_targets
from tokenwire.routing.xds_source import BOOTSTRAP, endpoints_of
from tokenwire.xds.v1 import client_status_pb2 as pb

NAMES = (f"service-{number}" for number in itertools.count())
"""gRPC keeps one client for each name, and the control plane it was made with."""


@pytest.fixture
def name() -> str:
    return next(NAMES)


@asynccontextmanager
async def planned(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ControlPlane]:
    """A control plane that this process asks."""
    async with control_plane() as plane:
        monkeypatch.delenv(BOOTSTRAP[0], raising=False)
        monkeypatch.setenv(BOOTSTRAP[1], plane.bootstrap)
        yield plane


@asynccontextmanager
async def following(text: str) -> AsyncIterator[tuple[Discovery, list[list[str]]]]:
    told: list[list[str]] = []
    discovery = Discovery(parse_targets(text), lambda found: told.append(list(found)), interval_s=0.01)
    discovery.start()
    try:
        yield discovery, told
    finally:
        await discovery.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_endpoints_are_followed_as_they_change(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def main() -> None:
        async with planned(monkeypatch) as plane, following(f"xds:///{name}") as (discovery, told):
            await plane.serve({name: ["127.0.0.1:1", "127.0.0.1:2"]})
            await until(lambda: told and told[-1] == ["127.0.0.1:1", "127.0.0.1:2"])
            assert not discovery.problem()
            plane.unhealthy.add("127.0.0.1:1")
            await plane.serve({name: ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]})
            await until(lambda: told[-1] == ["127.0.0.1:2", "127.0.0.1:3"])
            await plane.serve({name: ["127.0.0.1:3"]})
            await until(lambda: told[-1] == ["127.0.0.1:3"])

    asyncio.run(main())


def test_what_the_control_plane_no_longer_knows_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def main() -> None:
        async with planned(monkeypatch) as plane, following(f"xds:///{name}") as (discovery, told):
            await plane.serve({name: ["127.0.0.1:1"]})
            await until(lambda: told and told[-1] == ["127.0.0.1:1"])
            await plane.serve({"another": ["127.0.0.1:2"]})
            await until(discovery.problem)
            assert re.search(
                rf"xds:///{name}: the control plane knows no (Listener|Cluster) '{name}'", discovery.problem()
            )
            assert told[-1] == ["127.0.0.1:1"]

    asyncio.run(main())


def test_silence_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def main() -> None:
        async with planned(monkeypatch), following(f"xds:///{name}") as (discovery, told):
            await until(discovery.problem)
            assert "has not told endpoints" in discovery.problem()
            assert not told

    asyncio.run(main())


def test_the_first_priority_with_endpoints_counts() -> None:
    assignment = ads.pb.ClusterLoadAssignment(cluster_name="c")
    unknown, healthy, draining = pb.HEALTH_STATUS_UNSPECIFIED, pb.HEALTH_STATUS_HEALTHY, pb.HEALTH_STATUS_DRAINING
    for priority, port, status in ((1, 1, healthy), (0, 2, draining), (2, 3, healthy), (1, 4, unknown)):
        endpoint = assignment.endpoints.add(priority=priority).lb_endpoints.add(health_status=status)
        endpoint.endpoint.address.socket_address.address = "::1"
        endpoint.endpoint.address.socket_address.port_value = port
    assert endpoints_of(pb.Endpoints.FromString(assignment.SerializeToString())) == ["[::1]:1", "[::1]:4"]


def test_without_a_control_plane_it_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in BOOTSTRAP:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(FailedPrecondition, match="GRPC_XDS_BOOTSTRAP"):
        Discovery(parse_targets(f"xds:///{name}"), print, interval_s=1)


@pytest.mark.parametrize("text", ["xds:model", "xds://authority/model", "xds:///", "xds:///a b", "xds:///a?b"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="xds:///name"):
        parse_targets(text)


def test_the_gateway_finds_tokenizer_tiers_and_lets_one_go(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def main() -> None:
        async with (
            planned(monkeypatch) as plane,
            fake_tokenizer_tier() as one,
            fake_tokenizer_tier() as other,
        ):
            await plane.serve({name: [one.target, other.target]})
            settings = {"tokenizer_targets": f"xds:///{name}", "discovery_interval_s": 0.1}
            async with live_gateway(wait=False, **settings) as live:
                backends = live.server.backends
                await live.until(lambda: [tier.ready for tier in backends.tiers] == [True, True])
                await asyncio.gather(*(live.generate(f"Number {number}") for number in range(8)))
                assert min(num_submits(one), num_submits(other)) > 0
                await plane.serve({name: [other.target]})
                await live.until(lambda: [tier.target for tier in backends.tiers] == [other.target])
                before = num_submits(one)
                await asyncio.gather(*(live.generate(f"Number {number}") for number in range(8)))
                assert num_submits(one) == before
                assert live.count("grpc.generate", "ok") == 16

    asyncio.run(main())


def test_tiers_are_called_with_tls(monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    """The tier's own: what the control plane says of it does not count."""
    certificates = Certificates(tmp_path / "certs")

    async def main() -> None:
        shown = certificates.server("tokenizer", ask=True)
        async with planned(monkeypatch) as plane, fake_tokenizer_tier(tls=shown) as tier:
            await plane.serve({name: [tier.target]})
            settings = {"tokenizer_targets": f"xds:///{name}", **certificates.upstream("gateway")}
            async with live_gateway(upstream_tls_name="localhost", **settings) as live:
                await live.generate("Number 1")
                assert num_submits(tier) == 1

    asyncio.run(main())


def num_submits(tier: Any) -> int:
    return len(tier.requests)


def test_the_tokenizer_tier_finds_model_tiers_and_a_client_the_gateways(
    monkeypatch: pytest.MonkeyPatch, name: str, trained_folder: Path
) -> None:
    """Per-request streams are balanced by gRPC itself, which the client leaves them to."""
    models, gateways = f"{name}/models", f"{name}/gateways"

    def told(addresses: Sequence[Any]) -> list[str]:
        return [f"127.0.0.1:{each.port}" for each in addresses]

    async def main() -> None:
        mock = {"model": str(trained_folder), "mock_vocab_size": VOCAB_SIZE}
        async with (
            planned(monkeypatch) as plane,
            live_model_tier(**mock) as one,
            live_model_tier(**mock) as other,
        ):
            await plane.serve({models: told([one, other])})
            target = {"model_targets": f"xds:///{models}", "discovery_interval_s": 0.1}
            async with live_tokenizer_tier(trained_folder, wait=False, **target) as tokenizer:
                await tokenizer.until_ready(2)
                async with live_gateway(tokenizer) as first, live_gateway(tokenizer) as second:
                    await plane.serve({models: told([other]), gateways: [first.grpc_target, second.grpc_target]})
                    await tokenizer.until_ready(1)
                    async with AsyncClient(f"xds:///{gateways}") as client:
                        for number in range(8):
                            (output,) = await client.generate(f"Number {number}", max_tokens=2).outputs()
                            assert output.terminal.usage.completion_tokens == 2
                    assert first.count("grpc.generate", "ok") + second.count("grpc.generate", "ok") == 8
                    assert min(first.count("grpc.generate", "ok"), second.count("grpc.generate", "ok")) >= 2
                    assert one.num_steps == 0 < other.num_steps

    asyncio.run(main())
