"""What the options of channels and servers do, over real ones."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from tests.fakes.grpc_bytes import PREFACE, SETTINGS, frame
from tests.fakes.loopback import on_loopback
from tests.fakes.proxy import Proxy
from tokenwire.channels import MAX_STREAMS, TIER_OPTIONS, Options, aio_channel, server_options
from tokenwire.health import is_serving, wait_serving

MAX_CONCURRENT_STREAMS = 3
"""The setting's number (RFC 9113, 6.5.2)."""
NUM_CALLS = 4000
"""gRPC itself would cut what is beyond 3,000."""


@asynccontextmanager
async def healthy() -> AsyncIterator[str]:
    """The address of a server that answers for its health."""
    server = grpc.aio.server(options=server_options(2**20))
    servicer = health.HealthServicer()
    await servicer.set("", HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    async with on_loopback(server) as address:
        yield address


@pytest.mark.parametrize("options", [[], TIER_OPTIONS], ids=["client", "tier"])
def test_a_connection_over_a_long_way_is_waited_for(options: Options) -> None:
    """gRPC takes its least pause between attempts for the time that one may take."""

    async def main() -> None:
        async with (
            healthy() as address,
            Proxy(int(address.rpartition(":")[2]), delay_s=0.4) as far,
            aio_channel(far.target, None, options) as channel,
        ):
            await HealthStub(channel).Check(HealthCheckRequest())  # type: ignore[no-untyped-call]
            assert await asyncio.to_thread(is_serving, far.target)
            async with asyncio.timeout(20):
                await wait_serving(far.target)

    asyncio.run(main())


def test_calls_that_come_all_at_once_are_not_cut_before_a_tier_has_seen_them() -> None:
    async def main() -> None:
        async with healthy() as address, aio_channel(address) as channel:
            stub = HealthStub(channel)  # type: ignore[no-untyped-call]
            calls = [stub.Check(HealthCheckRequest()) for _ in range(NUM_CALLS)]
            codes = Counter(await asyncio.gather(*(call.code() for call in calls)))
        assert codes == {grpc.StatusCode.OK: NUM_CALLS}

    asyncio.run(main())


def test_one_connection_has_so_many_streams_at_once_and_no_more() -> None:
    async def main() -> None:
        async with healthy() as address:
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
            async with asyncio.timeout(10):
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3]))
            assert head[3] == SETTINGS
            settings = dict(struct.iter_unpack(">HI", payload))
            assert settings[MAX_CONCURRENT_STREAMS] == MAX_STREAMS
            writer.close()

    asyncio.run(main())
