"""A tokenizer tier without a model behind it, on the real wire: answers with the words of the prompt.

A word is a token, numbered from 0. Log-probabilities are sent where they are asked for; a prompt has those of three
tokens. A prompt whose first word begins with `!` is a script:
    !hold a b      sends `a`, then waits until cancelled (or for ever, when the tier is deaf)
    !hang          sends nothing, then waits likewise
    !step a b c    sends a word per `step()` of the tier
    !bad a         ends with InvalidRequest at once
    !markup        ends with InvalidRequest at once, whose message is HTML
    !down          ends with Unavailable at once, which says nothing of when to come back
    !long a        ends with InvalidRequest at once: longer than the context
    !bytes é       sends a token for each byte of the words; the last one of a character brings its text
    !timed a b     sends the words, and says in the end where the time went
    !break a b     sends the words, then ends with Internal
    !lost a b      sends the words, then ends with Unavailable
    !late a        sends the words, then ends with DEADLINE
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tests.fakes.logprobs import logprob_of, logprobs_of, part_of_a_character
from tokenizer_svc.prompt import too_long
from tokenwire.errors import (
    FieldViolation,
    Internal,
    InvalidRequest,
    NotFound,
    TokenwireError,
    Unavailable,
    let_go,
)
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.outbox import TextOutbox
from tokenwire.requests import (
    CancelReason,
    FinishReason,
    GenerationOptions,
    ModelTimings,
    Terminal,
    TokenizerTimings,
    Usage,
)
from tokenwire.server import GrpcServer
from tokenwire.session import MAX_FRAME_BYTES
from tokenwire.session_server import run_session
from tokenwire.settings import ServerSettings
from tokenwire.tasks import cancel_and_wait
from tokenwire.v1 import common_pb2, model_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tokenwire.wire import CANCEL_FROM_WIRE, options_from_wire

MODEL = "echo"
MARKUP = "<img src=x onerror=window.owned=1><script>window.owned=1</script>"
TIMINGS = (ModelTimings(0.001, 0.002, 0.003), TokenizerTimings(0.0, 0.0005))
VOCABULARY = "sha256:" + "0" * 64


def bytes_of(text: str) -> list[str]:
    """What each byte adds to the text: the last one of a character all of it, the others nothing."""
    return [part for character in text for part in [""] * (len(character.encode()) - 1) + [character]]


@dataclass
class Job:
    """One choice of one Submit."""

    handle: int
    choice: int
    request: Any
    num_steps: int
    """Steps of the tier before it came."""
    task: asyncio.Task[None] | None = None


class FakeSession:
    """One gateway's session."""

    def __init__(self, tier: "FakeTokenizerTier") -> None:
        self.tier = tier
        self.outbox = TextOutbox()
        self.jobs: dict[int, Job] = {}

    def hello(self) -> Any:
        hello = common_pb2.Hello(protocol_version=1, peer="fake", epoch=1, models=[self.tier.card()])
        hello.max_requests = self.tier.max_requests
        return tokenizer_pb2.SessionResponse(hello=hello)

    def on_frame(self, frame: Any) -> None:
        for submit in frame.submits:
            self.tier.requests.append(submit.request)
            for choice in range(submit.request.options.num_choices or 1):
                job = Job(submit.handle + choice, choice, submit.request, self.tier.num_steps)
                self.outbox.open(job.handle)
                self.jobs[job.handle] = job
                job.task = asyncio.ensure_future(self.run(job))
        for cancel in frame.cancels:
            job = self.jobs.get(cancel.handle)
            self.tier.note_cancel(CANCEL_FROM_WIRE[cancel.reason])
            if job is not None and not self.tier.deaf:
                asyncio.get_running_loop().call_soon(job.task.cancel)  # one that has not begun would end unheard

    async def run(self, job: Job) -> None:
        sent: list[str] = []
        try:
            terminal = await self.tier.answer(job, self.outbox, sent)
        except asyncio.CancelledError:
            terminal = Terminal(FinishReason.CANCELLED, usage=Usage(1, 0, len(sent)))
        except TokenwireError as error:
            let_go(error)
            terminal = Terminal(FinishReason.ERROR, error=error)
        self.jobs.pop(job.handle, None)
        self.outbox.finish(job.handle, terminal)

    def half_close(self) -> None:
        self.outbox.end()

    async def next_frame(self) -> Any | None:
        return await self.outbox.next_frame()

    def close(self) -> None:
        for job in list(self.jobs.values()):
            job.task.cancel()


class FakeTokenizerTier(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """The tier and everything it saw."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.max_requests = 0
        """What hello says."""
        self.cancels: list[CancelReason] = []
        self.failure: TokenwireError | None = None
        """What every request and call ends with."""
        self.deaf = False
        """Ignores Cancel and deadlines."""
        self.tier_load: Any = None
        """Answers GetTierLoad; None: it is a release that does not know that."""
        self.embeds: list[Any] = []
        self.detokenizes: list[Any] = []
        self.holds_detokenizes = False
        """Answers none."""
        self.num_embedding = 0
        self.sessions: list[FakeSession] = []
        self.server: GrpcServer | None = None
        self.port = 0
        self._changed = asyncio.Event()
        self.num_steps = 0
        self.num_tokenized = 0
        self.num_token_calls = 0
        """Of Tokenize, Detokenize, ApplyChatTemplate and CountTokens."""

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def card(self) -> Any:
        fingerprint = common_pb2.Fingerprint(vocabulary=VOCABULARY)
        return common_pb2.ModelCard(
            name=MODEL, fingerprint=fingerprint, max_context_tokens=64, vocab_size=1000,
            capabilities=[common_pb2.CAPABILITY_GENERATE, common_pb2.CAPABILITY_EMBED], embedding_size=4,
        )  # fmt: skip

    def step(self) -> None:
        """Let every `!step` prompt send its next word."""
        self.num_steps += 1
        self._changed.set()

    def note_cancel(self, reason: CancelReason) -> None:
        self.cancels.append(reason)
        self._changed.set()

    async def until(self, condition: Any) -> None:
        """Wait until something is true; at most 10 s."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    @property
    def num_running(self) -> int:
        return sum(len(session.jobs) for session in self.sessions)

    async def answer(self, job: Job, outbox: TextOutbox, sent: list[str]) -> Terminal:
        request = job.request
        if request.model not in ("", MODEL):
            raise NotFound(f"model {request.model!r} is not served here; served: {MODEL}", reason="MODEL_NOT_FOUND")
        if request.fingerprint.vocabulary not in ("", VOCABULARY):
            raise InvalidRequest("the vocabulary differs")
        options = options_from_wire(request.options)
        words = self.words(request)
        script = words.pop(0) if words[0].startswith("!") else ""
        self.refuse(script)
        limit = options.stop.max_tokens or 10**6
        num_prompt = len(words) + bool(script)
        pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        if script == "!bytes":
            pieces = [piece for text in pieces for piece in bytes_of(text)]
        for number, piece in enumerate(pieces[: 1 if script == "!hold" else limit]):
            if script == "!step":
                while self.num_steps <= job.num_steps + number:
                    await self._wait_change()
            sent.append(piece)
            ids = [number] if options.return_token_ids else []
            outbox.add_text(job.handle, piece, 1, ids, self.logprobs(options, number, sent, script))
            await asyncio.sleep(0)
        usage = Usage(num_prompt, min(1, num_prompt), len(sent))
        if script in ("!hold", "!hang"):
            await asyncio.Event().wait()
        if script == "!break":
            raise Internal("the fake broke")
        if script == "!lost":
            raise Unavailable("the model tier was lost")
        if script == "!late":
            return Terminal(FinishReason.DEADLINE, usage=usage)
        if len(sent) >= limit:
            return Terminal(FinishReason.LENGTH, usage=usage)
        model, tokenizer = TIMINGS if script == "!timed" else (None, None)
        return Terminal(FinishReason.STOP_TOKEN, usage, 0, model_timings=model, tokenizer_timings=tokenizer)

    def refuse(self, script: str) -> None:
        """Raise what it ends with before its first word."""
        if self.failure is not None:
            raise self.failure
        if script == "!bad":
            message = "options.stop.max_tokens: 999 is not allowed: at most 63"
            raise InvalidRequest(message, violations=[FieldViolation("options.stop.max_tokens", "999 is not allowed")])
        if script == "!markup":
            raise InvalidRequest(MARKUP)
        if script == "!down":
            raise Unavailable("no model tier is ready")
        if script == "!long":
            raise too_long("at least 99", 64)

    def logprobs(
        self, options: GenerationOptions, number: int, sent: list[str], script: str
    ) -> SequenceLogprobs | None:
        """Of the last word that was sent; with the first one the prompt's."""
        found = SequenceLogprobs()
        if options.prompt_logprobs is not None and number == 0:
            found.prompt += logprobs_of(range(1, 4), options.prompt_logprobs)
        if options.logprobs is not None:
            offset = sum(map(len, sent[:-1]))
            token = logprob_of(number, options.logprobs, text=sent[-1], text_offset=offset)
            found.tokens.append(part_of_a_character(token) if script == "!bytes" else token)
        return found if found.tokens or found.prompt else None

    async def _wait_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def words(self, request: Any) -> list[str]:
        kind = request.WhichOneof("input")
        if kind == "text":
            words = request.text.split()
        elif kind == "token_ids":
            words = [f"t{token}" for token in request.token_ids.ids]
        elif kind == "conversation":
            words = request.conversation.messages[-1].content.split()
        else:
            words = []
        if not words:
            field = "input" if kind is None else kind
            raise InvalidRequest(f"{field}: the prompt is empty", violations=[FieldViolation(field, "is empty")])
        return words

    async def Session(self, frames: Any, context: Any) -> None:
        session = FakeSession(self)
        self.sessions.append(session)
        await run_session(frames, context, session)

    async def Tokenize(self, request: Any, context: Any) -> Any:
        self.num_tokenized += 1
        self.num_token_calls += 1
        if self.failure is not None:
            raise self.failure
        if not request.texts:
            raise InvalidRequest("texts: is empty", violations=[FieldViolation("texts", "is empty")])
        encodings = [tokenizer_pb2.Encoding(token_ids=range(len(text.split()))) for text in request.texts]
        return tokenizer_pb2.TokenizeResponse(encodings=encodings)

    async def Detokenize(self, request: Any, context: Any) -> Any:
        self.detokenizes.append(request)
        self.num_token_calls += 1
        if self.holds_detokenizes:
            await asyncio.Event().wait()
        texts = [" ".join(f"t{token}" for token in sequence.ids) for sequence in request.sequences]
        return tokenizer_pb2.DetokenizeResponse(texts=texts)

    async def StreamDetokenize(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.model == "gone":
                raise NotFound("model: gone is not served here", reason="MODEL_NOT_FOUND")
            text = "".join(f"t{token} " for token in request.token_ids)
            yield tokenizer_pb2.StreamDetokenizeResponse(handle=request.handle, text=text, end=request.end)

    async def ApplyChatTemplate(self, request: Any, context: Any) -> Any:
        self.num_token_calls += 1
        text = "|".join(message.content for message in request.conversation.messages)
        ids = range(len(text)) if request.tokenize else []
        return tokenizer_pb2.ApplyChatTemplateResponse(text=text, token_ids=ids)

    async def CountTokens(self, request: Any, context: Any) -> Any:
        self.num_token_calls += 1
        counts = [len(text.split()) for text in request.texts]
        return tokenizer_pb2.CountTokensResponse(texts=counts, max_context_tokens=64)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.model == "gone":
            raise NotFound("model: gone is not served here", reason="MODEL_NOT_FOUND")
        yield tokenizer_pb2.GetTokenizerResponse(files=[tokenizer_pb2.TokenizerFile(name="a", size_bytes=2)])
        for content in (b"x", b"y"):
            yield tokenizer_pb2.GetTokenizerResponse(content=content)

    async def Embed(self, request: Any, context: Any) -> Any:
        """Of each input its first character's code or first id, its words or ids, and zeros. A word is a token."""
        self.embeds.append(request)
        self.num_embedding += 1
        try:
            for index, text in enumerate(request.texts):
                if text == "!bad":
                    field, description = f"texts[{index}]", "has 99 tokens"
                    raise InvalidRequest(f"{field}: {description}", violations=[FieldViolation(field, description)])
                if text == "!down":
                    raise Unavailable("no model tier")
                if text == "!hang":
                    await asyncio.Event().wait()
            counts = [len(text.split()) for text in request.texts] + [len(each.ids) for each in request.token_ids]
            firsts = [ord(text[0]) for text in request.texts] + [each.ids[0] for each in request.token_ids]
            size = request.options.dimensions or 4
            vectors = [[first + 0.1, count, *[0.0] * size][:size] for first, count in zip(firsts, counts, strict=True)]
            return tokenizer_pb2.EmbedResponse(
                embeddings=[model_pb2.Embedding(values=vector) for vector in vectors],
                usage=common_pb2.Usage(prompt_tokens=sum(counts)),
            )
        finally:
            self.num_embedding -= 1

    async def ListModels(self, request: Any, context: Any) -> Any:
        return tokenizer_pb2.ListModelsResponse(models=[self.card()])

    async def GetTierLoad(self, request: Any, context: Any) -> Any:
        if self.tier_load is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "what is that?")
        return await self.tier_load(request, context)

    async def start(
        self, port: int = 0, *, serving: bool = True, tls: dict[str, str] | None = None, max_requests: int = 0
    ) -> None:
        self.max_requests = max_requests
        self.server = GrpcServer(
            ServerSettings(port=port, drain_timeout_s=0.2, **(tls or {})), slack_bytes=MAX_FRAME_BYTES
        )
        descriptor = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
        self.server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, self, descriptor)
        self.port = await self.server.start()
        await self.server.set_serving(serving)

    async def kill(self) -> None:
        """Break every stream."""
        if self.server is not None:
            await self.server.server.stop(None)
            self.server = None
        await cancel_and_wait(*(job.task for s in self.sessions for job in s.jobs.values() if not job.task.done()))


@asynccontextmanager
async def fake_tokenizer_tier(**options: Any) -> AsyncIterator[FakeTokenizerTier]:
    """A running tier on a free port of the loopback, killed with the block."""
    tier = FakeTokenizerTier()
    await tier.start(**options)
    try:
        yield tier
    finally:
        await tier.kill()
