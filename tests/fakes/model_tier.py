"""A model tier without a model, speaking the real wire on a free port: it says what the test tells it to.

By default every request is answered by `reply` (token ids) and `terminal`, one token per frame, with log-probabilities
where they are asked for. With `hold` nothing is answered by itself: the test sends with `say`, `say_prompt` and `end`.
What arrived is in `requests` and `cancels`. With `caches` it holds every prompt it got in a cache without end, and
says so in cache events.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from model_svc.cache_events import CacheEventLog
from tests.fakes.logprobs import logprobs_of
from tokenwire.block_hash import SHARED_SCHEME, block_hashes, cache_root
from tokenwire.channels import server_options
from tokenwire.embedding_wire import capabilities_to_wire
from tokenwire.errors import TokenwireError
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.status import abort
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc
from tokenwire.wire import CANCEL_FROM_WIRE, logprob_to_wire, terminal_to_wire

Frame = model_pb2.ModelServiceSessionResponse


@dataclass(eq=False)
class Received:
    """One Submit, and the session it came on."""

    handle: int
    request: model_pb2.TokenRequest
    session: "FakeSession"

    @property
    def prompt(self) -> list[int]:
        return list(self.request.token_ids)

    async def say(self, *token_ids: int, choice: int = 0) -> None:
        """One frame with these tokens."""
        frame = Frame(handles=[self.handle + choice], counts=[len(token_ids)], token_ids=token_ids)
        output = self.request.options.output
        if output.HasField("logprobs"):
            tokens = map(logprob_to_wire, logprobs_of(token_ids, output.logprobs))
            frame.logprobs.add(handle=self.handle + choice, tokens=tokens)
        await self.session.send(frame)

    async def say_prompt(self, *token_ids: int, choice: int = 0) -> None:
        """One frame with the log-probabilities of these tokens of the prompt."""
        prompt = map(logprob_to_wire, logprobs_of(token_ids, self.request.options.output.prompt_logprobs))
        frame = Frame()
        frame.logprobs.add(handle=self.handle + choice, prompt=prompt)
        await self.session.send(frame)

    async def end(self, terminal: Terminal, choice: int = 0) -> None:
        """The terminal event."""
        await self.session.send(Frame(finishes=[terminal_to_wire(terminal, self.handle + choice)]))


@dataclass(eq=False)
class FakeSession:
    context: Any
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, frame: Frame) -> None:
        async with self.lock:
            await self.context.write(frame)


class FakeModelTier(model_pb2_grpc.ModelServiceServicer):
    def __init__(
        self,
        *,
        reply: Callable[[model_pb2.TokenRequest], Sequence[int]] = lambda request: list(request.token_ids),
        hold: bool = False,
        vocabulary: str = "",
        max_context_tokens: int = 512,
        vocab_size: int = 0,
        protocol_version: int = PROTOCOL_VERSION,
        credit: common_pb2.AdmissionCredit | None = None,
        caches: bool = False,
        block_size: int = 4,
        reason: FinishReason = FinishReason.LENGTH,
        adapters: Sequence[str] = (),
        embedding_size: int = 0,
        generates: bool = True,
        on_embed: Callable[[Any], TokenwireError | None] = lambda request: None,
    ) -> None:
        self.reply = reply
        self.hold = hold
        self.reason = reason
        self.card = common_pb2.ModelCard(
            name="fake",
            fingerprint=common_pb2.Fingerprint(vocabulary=vocabulary),
            max_context_tokens=max_context_tokens,
            vocab_size=vocab_size,
            hash_scheme=SHARED_SCHEME if caches else "",
            block_size=block_size,
            adapters=adapters,
            capabilities=capabilities_to_wire(generates=generates, embeds=bool(embedding_size)),
            embedding_size=embedding_size,
        )
        self.on_embed = on_embed
        """What a call to embed is refused with; None: it is answered."""
        self.embeds: list[model_pb2.ModelServiceEmbedRequest] = []
        self.num_embedding = 0
        self.embeds_go_on = asyncio.Event()
        """Cleared, calls to embed wait for it."""
        self.embeds_go_on.set()
        self.protocol_version = protocol_version
        self.credit = credit
        """In the first frame of a session; None: no credits at all."""
        self.demands: list[list[common_pb2.Demand]] = []
        """Of every frame up after Hello, in order of arrival."""
        self.port = 0
        self.requests: list[Received] = []
        self.cancels: list[tuple[int, str]] = []
        """Handle and reason, in order of arrival."""
        self.sessions: list[FakeSession] = []
        self.epoch = 1
        self.cache = CacheEventLog()
        self.num_subscribed = 0
        self._server: grpc.aio.Server | None = None
        self._playing: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; after `kill` again on the same port."""
        self.cache.restart(self.epoch)
        self._server = grpc.aio.server(options=server_options(2**24))
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def change_adapters(self, *names: str) -> None:
        """These it has from now on, and says so."""
        self.card.adapters[:] = names
        await self.announce_card()

    async def announce_card(self) -> None:
        """Say anew what there is."""
        for session in self.sessions:
            await session.send(Frame(models=[self.card]))

    async def kill(self) -> None:
        """Gone, without a word to anybody."""
        assert self._server is not None
        for task in self._playing:
            task.cancel()
        self.sessions.clear()
        await self._server.stop(None)
        self.epoch += 1

    async def until(self, condition: Callable[["FakeModelTier"], Any]) -> None:
        """Wait until something has arrived."""
        async with asyncio.timeout(10):
            while not condition(self):
                await asyncio.sleep(0.002)

    async def request(self, index: int = 0) -> Received:
        """The nth request that arrived; waits for it."""
        await self.until(lambda fake: len(fake.requests) > index)
        return self.requests[index]

    async def Session(self, frames: AsyncIterator[Any], context: Any) -> None:
        first = await anext(frames)
        assert first.HasField("hello")
        session = FakeSession(context)
        hello = common_pb2.Hello(protocol_version=self.protocol_version, epoch=self.epoch, models=[self.card])
        await session.send(Frame(hello=hello, credit=self.credit))
        self.sessions.append(session)
        async for frame in frames:
            self.demands.append(list(frame.demand))
            for submit in frame.submits:
                received = Received(submit.handle, submit.request, session)
                self.requests.append(received)
                if self.card.hash_scheme:
                    self._keep(submit.request)
                if not self.hold:
                    task = asyncio.ensure_future(self._play(received))
                    self._playing.add(task)
                    task.add_done_callback(self._playing.discard)
            self.cancels += [(cancel.handle, CANCEL_FROM_WIRE[cancel.reason].value) for cancel in frame.cancels]

    async def Embed(self, message: Any, context: Any) -> Any:
        """Of each input its first id, its length, and zeros."""
        self.embeds.append(message)
        self.num_embedding += 1
        try:
            await self.embeds_go_on.wait()
            if (error := self.on_embed(message)) is not None:
                await abort(context, error)
            inputs = [list(each.ids) for each in message.inputs]
            size = message.options.dimensions or self.card.embedding_size
            vectors = [[float(ids[0]), float(len(ids)), *[0.0] * size][:size] for ids in inputs]
            return model_pb2.ModelServiceEmbedResponse(
                embeddings=[model_pb2.Embedding(values=vector) for vector in vectors],
                usage=common_pb2.Usage(prompt_tokens=sum(map(len, inputs))),
            )
        finally:
            self.num_embedding -= 1

    async def SubscribeCacheEvents(self, message: Any, context: Any) -> AsyncIterator[Any]:
        self.num_subscribed += 1
        async for event in self.cache.subscribe(message.epoch, message.sequence_number):
            blocks = {event.change.value: model_pb2.CacheBlocks(hashes=event.hashes)}
            yield model_pb2.SubscribeCacheEventsResponse(
                epoch=event.epoch, sequence_number=event.number, continues=event.continues, **blocks
            )

    def _keep(self, request: model_pb2.TokenRequest) -> None:
        root = cache_root(
            request.context.tenant, request.cache_salt, self.card.hash_scheme, request.options.adapter
        )  # fmt: skip
        hashes = block_hashes(root, request.token_ids, self.card.block_size)
        self.cache.record([each for each in hashes if each not in self.cache.held], [])

    async def _play(self, received: Received) -> None:
        ids = list(self.reply(received.request))
        limit = received.request.options.stop.max_tokens or len(ids)
        for choice in range(received.request.options.num_choices or 1):
            if received.request.options.output.HasField("prompt_logprobs"):
                await received.say_prompt(*received.prompt[1:], choice=choice)
            for token_id in ids[:limit]:
                await received.say(token_id, choice=choice)
            usage = Usage(len(received.request.token_ids), 0, len(ids[:limit]))
            await received.end(Terminal(self.reason, usage), choice)


@asynccontextmanager
async def fake_model_tier(**options: Any) -> AsyncIterator[FakeModelTier]:
    fake = FakeModelTier(**options)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.kill()
