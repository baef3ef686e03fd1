"""Idle connections and running streams over HTTP and gRPC: opened in numbers, held, counted, closed."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from benchmarks.loadgen.http_stream import BadAnswer, Connection, ConnectionPool
from benchmarks.mock_stack import MockStack
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc

AT_ONCE = 100
"""Connections that are being made at a time: fewer than the shortest queue of a listening socket."""
OUTPUT_TOKENS = 2000
"""Of a stream that is held: more than it can get meanwhile."""
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Holder(Protocol):
    """Things of one kind that are held open."""

    lost: Counter[str]
    """Why those that could not be opened, or did not stay, are gone."""

    async def grow(self, count: int) -> None:
        """Open more, until so many were opened."""

    def num_held(self) -> int:
        """How many are open now."""

    async def close(self) -> None:
        """Leave all."""


class HttpConnections:
    """Each has asked for one thing, and is idle since."""

    def __init__(self, stack: MockStack) -> None:
        self.lost: Counter[str] = Counter()
        self._stack = stack
        self._connections: list[Connection] = []
        self._num_tried = 0

    async def grow(self, count: int) -> None:
        """As Holder says."""
        await in_turns(self._one, count - self._num_tried)
        self._num_tried = count

    async def _one(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(Connection, self._stack.host, self._stack.port)
            await made.request(ALIVE, lambda _: None)
        except (OSError, BadAnswer) as error:
            self.lost[type(error).__name__] += 1
        else:
            if made.status != 200:
                self.lost[f"status {made.status}"] += 1
            self._connections.append(made)

    def num_held(self) -> int:
        """As Holder says."""
        return sum(each.reusable for each in self._connections)

    async def close(self) -> None:
        """As Holder says."""
        for each in self._connections:
            each.close()


class GrpcConnections:
    """A channel each that has greeted its server, and calls nothing."""

    def __init__(self, stack: MockStack) -> None:
        self.lost: Counter[str] = Counter()
        self._target = f"{stack.host}:{stack.grpc_port}"
        self._channels: list[grpc.aio.Channel] = []

    async def grow(self, count: int) -> None:
        """As Holder says."""
        await in_turns(self._one, count - len(self._channels))

    async def _one(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all would share one connection
        channel = grpc.aio.insecure_channel(self._target, options=options)
        self._channels.append(channel)
        try:
            async with asyncio.timeout(30):
                await channel.channel_ready()
        except TimeoutError:
            self.lost["not ready after 30 s"] += 1

    def num_held(self) -> int:
        """As Holder says."""
        return sum(each.get_state() == grpc.ChannelConnectivity.READY for each in self._channels)

    async def close(self) -> None:
        """As Holder says."""
        await asyncio.gather(*(each.close() for each in self._channels))


class Streams:
    """Answers that are being streamed."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    async def grow(self, count: int) -> None:
        """As Holder says; they may not have begun yet."""
        for _ in range(count - len(self._tasks)):
            self._tasks.append(asyncio.create_task(self._read()))
            if len(self._tasks) % AT_ONCE == 0:
                await asyncio.sleep(0.05)

    async def _read(self) -> None:
        self.lost[await self._ended()] += 1

    async def _ended(self) -> str:
        """Read one to its end, and say how it ended."""
        raise NotImplementedError

    def num_held(self) -> int:
        """As Holder says."""
        return sum(not each.done() for each in self._tasks)

    async def close(self) -> None:
        """As Holder says."""
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class HttpStreams(Streams):
    """OpenAI's completions as server-sent events, a connection each."""

    def __init__(self, stack: MockStack) -> None:
        super().__init__()
        self._pool = ConnectionPool(stack.host, stack.port)
        asked = {"prompt": "hello", "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}
        self._body = json.dumps(asked).encode()

    async def _ended(self) -> str:
        try:
            status = await self._pool.post("/v1/completions", self._body, lambda _: None)
        except (OSError, BadAnswer) as error:
            return type(error).__name__
        return f"status {status}"

    async def close(self) -> None:
        """As Holder says."""
        await super().close()
        self._pool.close()


class GrpcStreams(Streams):
    """Generate calls, all on one connection."""

    def __init__(self, stack: MockStack) -> None:
        super().__init__()
        self._channel = grpc.aio.insecure_channel(f"{stack.host}:{stack.grpc_port}")
        self._stub: Any = gateway_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        stop = common_pb2.StopConditions(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        self._request = gateway_pb2.GenerateRequest(
            prompts=[gateway_pb2.Prompt(text="hello")], options=common_pb2.GenerationOptions(stop=stop)
        )

    async def _ended(self) -> str:
        call = self._stub.Generate(self._request)
        try:
            async for _ in call:
                pass
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]
        return "OK"

    async def close(self) -> None:
        """As Holder says."""
        await super().close()
        await self._channel.close()


async def in_turns(one: Callable[[], Awaitable[None]], count: int) -> None:
    """So many of them, `AT_ONCE` at a time."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
