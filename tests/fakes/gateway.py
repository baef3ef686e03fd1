"""A gateway without tiers behind it: answers with the words of the prompt, and misbehaves when the prompt says so.
Log-probabilities come where they are asked for.

    "overload"   refused with Overloaded, retry after 1.5 s
    "bug"        the handler raises what no client should see
    "hang"       one word, then nothing until the call is cancelled or times out
    "cut"        one word, then the stream ends without a terminal event
    "deadline"   one word, then FinishReason.DEADLINE
    "lost"       one word, then a terminal event with an Unavailable error
    "think"      one word as reasoning, the others as text, and a call of the last one

Runs in a thread with a loop of its own, so that ordinary and asyncio clients can be tried alike.
"""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.fakes.logprobs import logprob_of, logprobs_of
from tokenwire.errors import InvalidRequest, Overloaded, TokenwireError, Unavailable
from tokenwire.interceptor import TypedErrors
from tokenwire.requests import FinishReason, ModelTimings, Terminal, Usage
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, model_pb2, tokenizer_pb2
from tokenwire.wire import logprob_to_wire, terminal_to_wire

MODEL = "words"
FILES = {"tokenizer.json": b"{}", "more/tool_use.jinja": b"tools"}
ENDS = {
    "deadline": Terminal(FinishReason.DEADLINE, Usage(1, 0, 1)),
    "lost": Terminal(FinishReason.ERROR, error=Unavailable("the model tier was lost", reason="MODEL_LOST")),
}


class FakeGateway(gateway_pb2_grpc.GenerationServiceServicer):
    def __init__(self) -> None:
        self.target = ""
        self.requests: list[Any] = []
        self.metadata_timeouts: list[float | None] = []
        self.failures_left = 0
        """Calls that are still to be refused with `failure`."""
        self.failure: TokenwireError = Unavailable("not now")
        self.damages = False
        """Sends files with their bytes in the wrong order."""
        self.cancelled = threading.Event()
        """Set when a hanging request was cancelled."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._saw(request, context)
        for index, prompt in enumerate(request.prompts):
            words = prompt.text.split() if prompt.HasField("text") else [str(i) for i in prompt.token_ids.ids]
            for choice in range(request.options.num_choices or 1):
                async for delta, finish in self._answer(words, request.options):
                    yield gateway_pb2.GenerateResponse(index=index, choice=choice, delta=delta, finish=finish)

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._saw(request, context)
        words = request.conversation.messages[-1].content.split()
        for choice in range(request.options.num_choices or 1):
            async for delta, finish in self._answer(words, request.options):
                yield gateway_pb2.ChatResponse(choice=choice, delta=delta, finish=finish)

    async def Tokenize(self, request: Any, context: Any) -> Any:
        self._saw(request, context)
        encodings = [tokenizer_pb2.Encoding(token_ids=map(ord, text)) for text in request.texts]
        return tokenizer_pb2.TokenizeResponse(encodings=encodings)

    async def Detokenize(self, request: Any, context: Any) -> Any:
        self._saw(request, context)
        return tokenizer_pb2.DetokenizeResponse(texts=["".join(map(chr, s.ids)) for s in request.sequences])

    async def ApplyChatTemplate(self, request: Any, context: Any) -> Any:
        self._saw(request, context)
        text = " ".join(message.content for message in request.conversation.messages)
        return tokenizer_pb2.ApplyChatTemplateResponse(text=text, token_ids=map(ord, text) if request.tokenize else [])

    async def CountTokens(self, request: Any, context: Any) -> Any:
        self._saw(request, context)
        conversations = [sum(len(m.content) for m in c.messages) for c in request.conversations]
        return tokenizer_pb2.CountTokensResponse(texts=map(len, request.texts), conversations=conversations)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._saw(request, context)
        files = [
            tokenizer_pb2.TokenizerFile(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in FILES.items()
        ]
        yield tokenizer_pb2.GetTokenizerResponse(files=files, fingerprint=common_pb2.Fingerprint(vocabulary="v"))
        for index, content in enumerate(FILES.values()):
            for byte in content[:: -1 if self.damages else 1]:
                yield tokenizer_pb2.GetTokenizerResponse(file_index=index, content=bytes([byte]))

    async def Embed(self, request: Any, context: Any) -> Any:
        """Of each input a number of its own and how long it is."""
        self._saw(request, context)
        lengths = [len(text) for text in request.texts] + [len(each.ids) for each in request.token_ids]
        return tokenizer_pb2.EmbedResponse(
            embeddings=[model_pb2.Embedding(values=[index + 0.5, length]) for index, length in enumerate(lengths)],
            usage=common_pb2.Usage(prompt_tokens=sum(lengths)),
        )

    async def ListModels(self, request: Any, context: Any) -> Any:
        card = common_pb2.ModelCard(name=MODEL, max_context_tokens=64, vocab_size=128, embedding_size=2)
        card.capabilities.extend([common_pb2.CAPABILITY_GENERATE, common_pb2.CAPABILITY_EMBED])
        card.fingerprint.vocabulary = "sha256:" + "0" * 64
        return tokenizer_pb2.ListModelsResponse(models=[card])

    def _saw(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata_timeouts.append(context.time_remaining())
        if getattr(request, "model", "") not in ("", MODEL):
            raise InvalidRequest(f"model {request.model!r} is not served; allowed: {MODEL}")
        if self.failures_left:
            self.failures_left -= 1
            raise self.failure

    async def _answer(self, words: list[str], options: Any) -> AsyncIterator[tuple[Any, Any]]:
        what = words[0] if words else ""
        if what == "overload":
            raise Overloaded("the queue is full", retry_after_s=1.5)
        if what == "bug":
            raise RuntimeError("secret")
        if not words:
            raise InvalidRequest("prompts[0]: empty")
        limit = options.stop.max_tokens if options.stop.HasField("max_tokens") else len(words)
        for i, word in enumerate(words[:limit]):
            delta = gateway_pb2.Delta(text=word if i == 0 else f" {word}", num_tokens=1, token_ids=[i])
            if options.output.HasField("logprobs"):
                delta.logprobs.append(logprob_to_wire(logprob_of(i, options.output.logprobs, text=delta.text)))
            if options.output.HasField("prompt_logprobs") and i == 0:
                prompt = logprobs_of(range(1, 4), options.output.prompt_logprobs)
                delta.prompt_logprobs.extend(map(logprob_to_wire, prompt))
            if what == "think" and i == 0:
                delta.text, delta.reasoning = "", word
            if what == "think" and word == words[-1]:
                delta.tool_calls.add(id="call_1", name=word, arguments="{}")
            yield delta, None
            if what == "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            if what == "cut":
                return
            if what in ENDS:
                yield None, terminal_to_wire(ENDS[what])
                return
        usage = Usage(prompt_tokens=len(words), completion_tokens=min(limit, len(words)))
        reason = FinishReason.LENGTH if limit <= len(words) else FinishReason.STOP_TOKEN
        timings = ModelTimings(queue_s=0.001, prefill_s=0.01, decode_s=0.1)
        yield None, terminal_to_wire(Terminal(reason, usage, model_timings=timings))


@contextmanager
def running_gateway(*, serving: bool = True) -> Iterator[FakeGateway]:
    """A fake gateway on a free port of the loopback, stopped with the block."""
    fake = FakeGateway()
    started = threading.Event()
    stop: asyncio.Event | None = None
    loop: asyncio.AbstractEventLoop | None = None

    async def serve() -> None:
        nonlocal stop, loop
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = grpc.aio.server(interceptors=[TypedErrors()])
        gateway_pb2_grpc.add_GenerationServiceServicer_to_server(fake, server)
        state = health.aio.HealthServicer()
        await state.set("", getattr(health_pb2.HealthCheckResponse, "SERVING" if serving else "NOT_SERVING"))
        health_pb2_grpc.add_HealthServicer_to_server(state, server)
        fake.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        started.set()
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    assert loop is not None and stop is not None
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
