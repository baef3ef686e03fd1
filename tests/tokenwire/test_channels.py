"""What the options of channels and servers do, over real ones."""

import asyncio
import struct
from collections import Counter

import grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from tests.fakes.grpc_bytes import PREFACE, SETTINGS, frame
from tokenwire.channels import MAX_STREAMS, aio_channel, server_options

MAX_CONCURRENT_STREAMS = 3
"""The setting's number (RFC 9113, 6.5.2)."""
NUM_CALLS = 4000
"""gRPC itself would cut what is beyond 3,000."""


def test_calls_that_come_all_at_once_are_not_cut_before_a_tier_has_seen_them() -> None:
    async def main() -> None:
        server = grpc.aio.server(options=server_options(2**20))
        add_HealthServicer_to_server(health.HealthServicer(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with aio_channel(f"127.0.0.1:{port}") as channel:
            stub = HealthStub(channel)  # type: ignore[no-untyped-call]
            calls = [stub.Check(HealthCheckRequest()) for _ in range(NUM_CALLS)]
            codes = Counter(await asyncio.gather(*(call.code() for call in calls)))
        await server.stop(None)
        assert codes == {grpc.StatusCode.OK: NUM_CALLS}

    asyncio.run(main())


def test_one_connection_has_so_many_streams_at_once_and_no_more() -> None:
    async def main() -> None:
        server = grpc.aio.server(options=server_options(2**20))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        async with asyncio.timeout(10):
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
        assert head[3] == SETTINGS
        settings = dict(struct.iter_unpack(">HI", payload))
        assert settings[MAX_CONCURRENT_STREAMS] == MAX_STREAMS
        writer.close()
        await server.stop(None)

    asyncio.run(main())
