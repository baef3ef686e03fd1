"""The real model tier with the mock engine, on a free loopback port, for tests that speak its wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry

from model_svc.server import ModelTier
from model_svc.settings import ModelTierSettings
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc


@dataclass
class LiveTier:
    tier: ModelTier
    channel: grpc.aio.Channel
    registry: CollectorRegistry
    port: int = 0

    @property
    def num_steps(self) -> int:
        """Engine steps that computed something, as far as they were reported."""
        return int(self.registry.get_sample_value("tokenwire_model_steps_total") or 0)

    @property
    def stub(self) -> model_pb2_grpc.ModelServiceStub:
        return model_pb2_grpc.ModelServiceStub(self.channel)

    async def until_idle(self) -> None:
        """Wait until the engine holds no sequence, then check that it holds no block either, and that counts add up."""
        async with asyncio.timeout(10):
            while self.tier.engine.num_open or self.tier.engine.load.running or self.tier.engine.backlog.num_queued:
                await asyncio.sleep(0.005)
        assert self.tier.engine.load.kv_blocks_used == 0
        self.tier.engine.check_integrity()
        self.tier.servicer.check_integrity()


@asynccontextmanager
async def live_model_tier(**settings: object) -> AsyncIterator[LiveTier]:
    values = {"engine": "mock", "port": 0, "metrics_port": 0, "mock_step_ms": 1.0, "drain_timeout_s": 2.0, **settings}
    registry = CollectorRegistry()
    tier = ModelTier(ModelTierSettings(**values), registry)  # type: ignore[arg-type]
    port = await tier.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield LiveTier(tier, channel, registry, port)
    finally:
        await tier.drain()


def token_request(token_ids: list[int], *, max_tokens: int = 5, **context: object) -> model_pb2.TokenRequest:
    request = model_pb2.TokenRequest(token_ids=token_ids, context=common_pb2.RequestContext(**context))
    request.options.stop.max_tokens = max_tokens
    return request


class RawSession:
    """A token session spoken by hand: what was sent, and everything that came back by handle."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call
        self.tokens: dict[int, list[int]] = {}
        self.finishes: dict[int, common_pb2.Finish] = {}
        self.frames: list[model_pb2.ModelServiceSessionResponse] = []

    @classmethod
    async def open(cls, stub: model_pb2_grpc.ModelServiceStub) -> "RawSession":
        session = cls(stub.Session())
        await session.send(hello=common_pb2.Hello(protocol_version=1))
        first = await session.call.read()
        assert first.hello.protocol_version == 1
        session.frames.append(first)
        return session

    async def send(self, **fields: object) -> None:
        await self.call.write(model_pb2.ModelServiceSessionRequest(**fields))

    async def submit(self, requests: dict[int, model_pb2.TokenRequest]) -> None:
        await self.send(submits=[model_pb2.TokenSubmit(handle=h, request=r) for h, r in requests.items()])

    async def read(self) -> model_pb2.ModelServiceSessionResponse:
        frame = await self.call.read()
        assert frame is not grpc.aio.EOF, await self.call.details()
        self.frames.append(frame)
        ids = iter(frame.token_ids)
        for handle, count in zip(frame.handles, frame.counts or [1] * len(frame.handles), strict=True):
            assert handle not in self.finishes, "a delta after the terminal event"
            self.tokens.setdefault(handle, []).extend(next(ids) for _ in range(count))
        assert next(ids, None) is None, "more token ids than the counts say"
        for finish in frame.finishes:
            assert finish.handle not in self.finishes, "a second terminal event"
            self.finishes[finish.handle] = finish
        return frame

    async def read_until_finished(self, *handles: int) -> None:
        async with asyncio.timeout(20):
            while not set(handles) <= set(self.finishes):
                await self.read()
