"""A gRPC server of a test on a port of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc


@asynccontextmanager
async def on_loopback(server: grpc.aio.Server) -> AsyncIterator[str]:
    """Its address, as long as the block runs; then what it answers is cut."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
