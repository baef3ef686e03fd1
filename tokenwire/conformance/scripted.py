"""The server that client programs are driven against: a gateway whose mock engine answers with the prompt's words.

A word is a token. The first word of a prompt may be an order:
    refuse …     INVALID_ARGUMENT, naming options.sampling.temperature
    overload …   RESOURCE_EXHAUSTED, try again after 1.5 s
    hang …       sends "hang", then nothing until it is cancelled or its time is over
    slow …       sends "slow", then ends with DEADLINE
    lost …       sends "lost", then ends with an UNAVAILABLE error
    hold …       sends "hold", and the rest when the script says so (sessions alone)
    mute …       sends nothing, not even an end (sessions alone)
    overrun …    sends a row of more tokens than were granted (sessions alone)
    crooked …    sends a frame whose columns differ in length (sessions alone)
Keeps all that the client sent, and notes what the contract forbids (`Seen.faults`). Does not know the cases.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tokenwire.conformance.scripted_session import ScriptedSession
from tokenwire.conformance.scripted_words import ENDS, Script, refusal_of, whole_end
from tokenwire.errors import FieldViolation, InvalidRequest, Unauthenticated
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc, tokenizer_pb2
from tokenwire.wire import terminal_to_wire

MODEL = "scripted"
LOOK_AGAIN_S = 0.01


@dataclass
class Seen:
    """What a client sent."""

    generates: list[gateway_pb2.GenerateRequest] = field(default_factory=list)
    chats: list[gateway_pb2.ChatRequest] = field(default_factory=list)
    sessions: list[ScriptedSession] = field(default_factory=list)
    had_deadline: bool = False
    """A call came with a time limit of its own."""
    num_running: int = 0
    """Streams of Generate and Chat that have not ended."""
    cancelled: bool = False
    """One of them was cancelled, or its connection ended."""
    over: bool = False
    """The case is over: what ends now ends with the server."""
    faults: list[str] = field(default_factory=list)
    """What the contract forbids."""

    async def calls_ended(self) -> None:
        """Wait until no stream of Generate or Chat runs any more."""
        while self.num_running:
            await asyncio.sleep(LOOK_AGAIN_S)


class ScriptedGateway(gateway_pb2_grpc.GenerationServiceServicer):
    """One case's server."""

    def __init__(self, script: Script, api_key: str = "") -> None:
        self.seen = Seen()
        self._script = script
        self._api_key = api_key

    async def Generate(self, request: gateway_pb2.GenerateRequest, context: Any) -> None:
        """Each prompt's words, prompt after prompt."""
        self.seen.generates.append(request)
        with self._call(context):
            if not request.prompts:
                self.seen.faults.append("Generate came without prompts")
                raise InvalidRequest("prompts: none given", violations=[FieldViolation("prompts", "none given")])
            for index, prompt in enumerate(request.prompts):
                async for delta, finish in self._answer(prompt.text.split(), request.options):
                    await context.write(gateway_pb2.GenerateResponse(index=index, delta=delta, finish=finish))

    async def Chat(self, request: gateway_pb2.ChatRequest, context: Any) -> None:
        """The words of the last message."""
        self.seen.chats.append(request)
        messages = request.conversation.messages
        with self._call(context):
            async for delta, finish in self._answer(messages[-1].content.split() if messages else [], request.options):
                await context.write(gateway_pb2.ChatResponse(delta=delta, finish=finish))

    async def Session(self, requests: Any, context: Any) -> None:
        """Many requests on one stream."""
        self._check_caller(context)
        session = ScriptedSession(self._script, self.card(), self.seen.faults, self.seen.sessions)
        self.seen.sessions.append(session)
        try:
            await session.serve(requests, context)
        finally:
            session.ended.set()

    async def ListModels(
        self, request: tokenizer_pb2.ListModelsRequest, context: Any
    ) -> tokenizer_pb2.ListModelsResponse:
        """One model."""
        self._check_caller(context)
        return tokenizer_pb2.ListModelsResponse(models=[self.card()])

    def card(self) -> pb.ModelCard:
        """The only model."""
        fingerprint = pb.Fingerprint(vocabulary=f"sha256:{'0' * 64}")
        return pb.ModelCard(
            name=MODEL, fingerprint=fingerprint, max_context_tokens=4096, vocab_size=1000,
            capabilities=[pb.CAPABILITY_GENERATE],
        )  # fmt: skip

    @contextmanager
    def _call(self, context: Any) -> Iterator[None]:
        """While a stream is answered. One that is cancelled is noted."""
        self.seen.num_running += 1
        try:
            self._check_caller(context)
            yield
        except asyncio.CancelledError:
            self.seen.cancelled = self.seen.cancelled or not self.seen.over
            raise
        finally:
            self.seen.num_running -= 1

    def _check_caller(self, context: Any) -> None:
        if context.time_remaining() is not None:
            self.seen.had_deadline = True
        if self._api_key and ("authorization", f"Bearer {self._api_key}") not in (context.invocation_metadata() or ()):
            self.seen.faults.append("a call came without the API key in `authorization: Bearer …`")
            raise Unauthenticated("the API key is missing", reason="NO_CREDENTIALS")

    async def _answer(
        self, words: list[str], options: pb.GenerationOptions
    ) -> AsyncIterator[tuple[gateway_pb2.Delta | None, pb.Finish | None]]:
        order = words[0] if words else ""
        if (error := refusal_of(order)) is not None:
            raise error
        sent, end = whole_end(words, options)
        for number, word in enumerate(sent):
            yield gateway_pb2.Delta(text=word if number == 0 else f" {word}", num_tokens=1), None
            await asyncio.sleep(0)
            if order == "hang":
                await asyncio.Event().wait()
            if order in ENDS:
                yield None, terminal_to_wire(ENDS[order])
                return
        yield None, terminal_to_wire(end)


def add_to(server: grpc.aio.Server, gateway: ScriptedGateway) -> None:
    """Offer it."""
    gateway_pb2_grpc.add_GenerationServiceServicer_to_server(gateway, server)  # type: ignore[no-untyped-call]
