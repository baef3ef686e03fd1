"""The real tokenizer tier on a free loopback port, and a text session spoken by hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.fakes.model_tier import FakeModelTier, fake_model_tier
from tokenizer_svc.server import TokenizerTier
from tokenizer_svc.settings import TokenizerTierSettings
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import TokenwireError
from tokenwire.parsed import Parsed
from tokenwire.requests import CancelReason, Terminal, TokenLogprob
from tokenwire.routing.discovery import Resolve, resolve_all
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tokenwire.wire import CANCEL_TO_WIRE, logprob_from_wire, parsed_from_wire, terminal_from_wire


@dataclass
class LiveTokenizerTier:
    server: TokenizerTier
    port: int
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        """A metric of the tier, without the beginning of its name; 0 while there is none."""
        return self.registry.get_sample_value(f"tokenwire_tokenizer_{name}", labels) or 0.0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def stub(self) -> Any:
        return tokenizer_pb2_grpc.TokenizerServiceStub(self.channel)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.server.tier.tokenizer

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).token_ids

    async def until_ready(self, num_replicas: int) -> None:
        async with asyncio.timeout(10):
            while self.server.tier.router.num_ready != num_replicas:
                await asyncio.sleep(0.002)

    async def until_idle(self) -> None:
        """Wait until no request runs, then check that what is held adds up."""
        async with asyncio.timeout(10):
            while self.server.tier.running:
                await asyncio.sleep(0.002)
        self.server.tier.check_integrity()


@asynccontextmanager
async def live_tokenizer_tier(
    folder: Path, *models: FakeModelTier, wait: bool = True, resolve: Resolve = resolve_all, **settings: Any
) -> AsyncIterator[LiveTokenizerTier]:
    targets = ",".join(model.target for model in models) or "127.0.0.1:1"
    values = {"port": 0, "metrics_port": 0, "model_targets": targets, "drain_timeout_s": 0.5, **settings}
    values.setdefault("model", folder.name)
    registry = CollectorRegistry()
    server = TokenizerTier(TokenizerTierSettings(**values), folder, registry=registry, resolve=resolve)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            live = LiveTokenizerTier(server, port, channel, registry)
            if wait:
                await live.until_ready(len(models))
            yield live
    finally:  # who has a session open has gone, or it would be waited for
        await server.drain()


def text_request(text: str = "", **context: Any) -> tokenizer_pb2.TextRequest:
    request = tokenizer_pb2.TextRequest(context=common_pb2.RequestContext(**context))
    if text:
        request.text = text
    return request


class TextPeer:
    """A text session spoken by hand: everything that came back by handle."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.hello: Any = None
        self.texts: dict[int, str] = {}
        self.num_tokens: dict[int, int] = {}
        self.token_ids: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprob]] = {}
        self.prompt_logprobs: dict[int, list[TokenLogprob]] = {}
        self.parsed: dict[int, Parsed] = {}
        self.terminals: dict[int, Terminal] = {}
        self.finishes: dict[int, common_pb2.Finish] = {}
        self.frames: list[Any] = []

    @classmethod
    async def open(cls, live: LiveTokenizerTier) -> "TextPeer":
        peer = cls(live.stub.Session())
        await peer.send(hello=common_pb2.Hello(protocol_version=1))
        peer.hello = (await peer.call.read()).hello
        return peer

    async def send(self, **fields: Any) -> None:
        await self.call.write(tokenizer_pb2.SessionRequest(**fields))

    async def submit(self, handle: int, request: Any, credit: int | None = None) -> None:
        await self.send(submits=[tokenizer_pb2.Submit(handle=handle, request=request, initial_credit=credit)])

    async def cancel(self, handle: int, reason: CancelReason = CancelReason.CLIENT) -> None:
        await self.send(cancels=[common_pb2.Cancel(handle=handle, reason=CANCEL_TO_WIRE[reason])])

    async def read(self) -> Any:
        async with asyncio.timeout(10):
            frame = await self.call.read()
        assert frame is not grpc.aio.EOF, await self.call.details()
        self.take(frame)
        return frame

    def take(self, frame: Any) -> None:
        """What came with a frame."""
        self.frames.append(frame)
        assert len(frame.handles) == len(frame.texts) == len(frame.num_tokens)
        for handle, text, num_tokens in zip(frame.handles, frame.texts, frame.num_tokens, strict=True):
            assert handle not in self.finishes, "text after the terminal event"
            self.texts[handle] = self.texts.get(handle, "") + text
            self.num_tokens[handle] = self.num_tokens.get(handle, 0) + num_tokens
        for extras in frame.extras:
            if (parsed := parsed_from_wire(extras.reasoning, extras.tool_calls)) is not None:
                self.parsed.setdefault(extras.handle, Parsed()).extend(parsed)
            self.token_ids.setdefault(extras.handle, []).extend(extras.token_ids)
            if extras.prompt_logprobs:
                assert not self.logprobs.get(extras.handle), "the prompt's come before the output's, or with its first"
            self.logprobs.setdefault(extras.handle, []).extend(map(logprob_from_wire, extras.logprobs))
            self.prompt_logprobs.setdefault(extras.handle, []).extend(map(logprob_from_wire, extras.prompt_logprobs))
        for finish in frame.finishes:
            assert finish.handle not in self.finishes, "a second terminal event"
            self.finishes[finish.handle] = finish
            self.terminals[finish.handle] = terminal_from_wire(finish)

    async def end(self, handle: int) -> Terminal:
        """Read until the terminal event of a handle."""
        while handle not in self.terminals:
            await self.read()
        return self.terminals[handle]

    async def until_text(self, handle: int, text: str) -> None:
        """Read until this is the text of a handle."""
        while self.texts.get(handle, "") != text:
            assert text.startswith(self.texts.get(handle, "")), self.texts[handle]
            await self.read()

    async def status(self) -> grpc.StatusCode:
        """Read to the end of the call."""
        async with asyncio.timeout(10):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.RpcError:
                pass
            return await self.call.code()


@asynccontextmanager
async def tokenizer_over_fake(
    folder: Path, settings: dict[str, Any] | None = None, **model: Any
) -> AsyncIterator[tuple[FakeModelTier, LiveTokenizerTier, TextPeer]]:
    """A fake model tier, the tokenizer tier above it, and a session to that."""
    async with fake_model_tier(**model) as fake, live_tokenizer_tier(folder, fake, **(settings or {})) as live:
        yield fake, live, await TextPeer.open(live)


def with_tier(folder: Path, call: Callable[[LiveTokenizerTier], Awaitable[Any]]) -> None:
    """Run against the tier alone; no model tier is needed."""

    async def main() -> None:
        async with live_tokenizer_tier(folder, wait=False) as live:
            await call(live)

    asyncio.run(main())


async def refusal(awaitable: Awaitable[Any]) -> TokenwireError:
    """What a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)
