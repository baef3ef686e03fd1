"""What the options of channels and servers do, over real ones."""

import asyncio
from collections import Counter

import grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from tokenwire.channels import aio_channel, server_options

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
