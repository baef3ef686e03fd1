"""Model tiers over the wire: one token Session per replica, and what it says of itself.

Turns columnar frames into calls of `TokenReceiver` and submissions into `TokenSubmit`, and tells how requests end. A
replica with another vocabulary is left out. Does not choose among replicas (see `router`) and does not know text.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from tokenizer_svc.allowance import Allowance
from tokenizer_svc.cache_events import CacheFollower
from tokenizer_svc.cache_view import CacheView
from tokenizer_svc.held_queue import Held
from tokenizer_svc.router import EmbeddingAnswer, EmbeddingSubmission, TokenReceiver, TokenSubmission
from tokenwire.channels import TierChannel
from tokenwire.embedding_wire import embedding_options_to_wire, generates, vectors_from_wire
from tokenwire.errors import FailedPrecondition, Internal, TokenwireError
from tokenwire.logs import fields
from tokenwire.requests import CancelReason
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.outcomes import Outcomes
from tokenwire.session import SessionClient, SessionStream
from tokenwire.status import from_rpc_error
from tokenwire.tls import ClientTls
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc
from tokenwire.wire import context_to_wire, logprobs_from_wire, options_to_wire, terminal_from_wire, usage_from_wire

log = logging.getLogger(__name__)

Stream = SessionStream[TokenReceiver]

MAX_DEMANDS = 64
"""Entries of demand in one frame; what smaller ones hold is told as that of nobody in particular."""


class Flow(Protocol):
    """What holds requests back for want of room."""

    def on_room(self) -> None:
        """There may be room."""

    def on_lapse(self, num_requests: int) -> None:
        """A lease has lapsed that allowed so many requests more."""

    def demand(self) -> Sequence[Held]:
        """What is held."""


class StreamPlacement:
    """A request's handles on one stream."""

    __slots__ = ("_first_handle", "_stream")

    def __init__(self, stream: Stream, first_handle: int) -> None:
        self._stream = stream
        self._first_handle = first_handle

    def cancel(self, choice: int, reason: CancelReason) -> None:
        """Ask for the end of a choice; its terminal event still comes."""
        self._stream.cancel(self._first_handle + choice, reason)

    def drop(self, choice: int, reason: CancelReason) -> None:
        """Ask for the end of a choice and hear no more of it."""
        if self._stream.receivers.pop(self._first_handle + choice, None) is not None:
            self._stream.cancel(self._first_handle + choice, reason)


class ModelReplica:
    """One model tier, reached again whenever it is lost. Close it."""

    def __init__(
        self,
        target: str,
        vocabulary: str,
        on_change: Callable[[], None],
        *,
        breaker: Breaker | None = None,
        follow_cache: bool = False,
        flow: Flow | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        """`vocabulary`: our fingerprint. `on_change` is called when `ready` may have changed.

        `breaker`: a plain one where none is given. `follow_cache`: whether to subscribe to its cache events. `flow` is
        told of room; None: nothing is held. `tls`: None: it is called without.
        """
        self.target = target
        self.max_context_tokens = 0
        self.vocab_size = 0
        self.adapters: frozenset[str] = frozenset()
        self.generates = True
        self.embedding_size = 0
        self.leaving = False
        """No longer wanted: it is not ready, and runs out."""
        self.breaker = breaker or Breaker()
        self.cache = CacheView()
        self._outcomes = Outcomes(target, self.breaker, on_change)
        self._follower = CacheFollower(target, self.cache) if follow_cache else None
        self._streams: set[Stream] = set()
        """Those that have not ended."""
        self._vocabulary = vocabulary
        self._on_change = on_change
        self._tls = tls
        self._link: TierChannel[Any] | None = None
        self._client: SessionClient[TokenReceiver] | None = None
        self._refused_as: tuple[str, int] | None = None
        """Vocabulary and epoch of the last refusal, so that it is logged once."""
        self._accepted: Stream | None = None
        """The last stream whose Hello suited us."""
        self._closing = False
        self._draining = False
        self._num_reported = 0
        self._num_open_at_report = 0
        self._max_batch_size = 1
        self._flow = flow
        self._allowance = Allowance()
        self._num_embedding = 0
        """Inputs that it embeds for us."""

    def start(self) -> None:
        """Begin connecting in the background."""
        link: TierChannel[Any] = TierChannel(self.target, model_pb2_grpc.ModelServiceStub, self._tls)
        self._link = link
        self._client = SessionClient(
            self.target, lambda: link.refreshed().Session(), model_pb2.ModelServiceSessionRequest, self
        )
        self._client.start()

    async def close(self) -> None:
        """Cut the connection; what is open is reported lost."""
        self._closing = True
        if self._follower is not None:
            await self._follower.close()
        if self._client is not None:
            await self._client.close()
        if self._link is not None:
            await self._link.close()

    @property
    def _stream(self) -> Stream | None:
        return self._client.stream if self._client is not None else None

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""
        stream = self._stream
        return stream is not None and not self._draining and not self.leaving

    @property
    def num_open(self) -> int:
        """Sequences that have not ended, those on streams that run out too."""
        return sum(len(stream.receivers) for stream in self._streams) + self._num_embedding

    @property
    def state(self) -> str:
        """One of `tokenizer_svc.metrics.REPLICA_STATES`."""
        if self.leaving:
            return "leaving"
        if self._stream is None:
            return "unreachable"
        if self._draining:
            return "draining"
        return "ready" if self.breaker.admits else "ejected"

    @property
    def load(self) -> float:
        """Its last report, corrected by what this tier has sent and got back since, per sequence of a step."""
        stream = self._stream
        num_own = (len(stream.receivers) if stream is not None else 0) + self._num_embedding
        return max(num_own, self._num_reported + num_own - self._num_open_at_report) / self._max_batch_size

    @property
    def leases_room(self) -> bool:
        """Whether it leases admission credits. A model tier that never did on this stream is not waited for."""
        return self._allowance.leases

    def has_room(self, num_requests: int, num_tokens: int) -> bool:
        """Whether so many sequences with so many prompt tokens may be submitted now."""
        return self._allowance.has_room(num_requests, num_tokens)

    def report_demand(self) -> None:
        """Tell it with the next frame up what is held."""
        stream = self._stream
        if stream is not None:
            stream.touch()

    def problem(self) -> str:
        """Why it is not ready, or is passed over."""
        if self._client is None:
            return "not started"
        if self.leaving:
            return "no longer listed"
        if self._stream is None:
            return self._client.last_error.message
        return "draining" if self._draining else self.breaker.problem()

    def submit(self, submission: TokenSubmission, receivers: Sequence[TokenReceiver]) -> StreamPlacement:
        """Send a request down, one receiver per choice."""
        stream = self._stream
        assert stream is not None, "submit only to a ready replica"
        self._allowance.charge(len(receivers), len(receivers) * len(submission.token_ids))
        handle = stream.open(list(receivers))
        self._outcomes.on_submit(handle)
        stream.submit(
            model_pb2.TokenSubmit(
                handle=handle,
                request=model_pb2.TokenRequest(
                    context=context_to_wire(submission.context),
                    token_ids=submission.token_ids,
                    options=options_to_wire(submission.options),
                    fingerprint=common_pb2.Fingerprint(vocabulary=submission.vocabulary),
                    cache_salt=submission.cache_salt,
                    num_generated_tokens=submission.num_generated_tokens,
                    first_choice=submission.first_choice,
                ),
            )
        )
        return StreamPlacement(stream, handle)

    def embed(self, submission: EmbeddingSubmission) -> asyncio.Task[EmbeddingAnswer]:
        """Embed inputs, which count from now until the task is done. Only while ready. It raises the tier's error."""
        num_inputs = len(submission.inputs)
        self._allowance.charge(num_inputs, sum(map(len, submission.inputs)))
        self._num_embedding += num_inputs
        end = self._outcomes.on_call()

        def on_done(task: asyncio.Task[EmbeddingAnswer]) -> None:
            self._num_embedding -= num_inputs
            if not task.cancelled():
                error = task.exception()
                if error is None or isinstance(error, TokenwireError):
                    end(error)

        task = asyncio.ensure_future(self._embed(submission))
        task.add_done_callback(on_done)
        return task

    async def _embed(self, submission: EmbeddingSubmission) -> EmbeddingAnswer:
        assert self._link is not None, "embed only on a ready replica"
        metadata = (("x-request-id", submission.context.request_id),)
        try:
            response = await self._link.stub.Embed(embedding_to_wire(submission), metadata=metadata)
        except grpc.aio.AioRpcError as rpc_error:
            raise from_rpc_error(rpc_error) from None
        answer = EmbeddingAnswer(vectors_from_wire(response.embeddings), usage_from_wire(response.usage))
        if len(answer.vectors) != len(submission.inputs):
            message = f"{self.target} gave {len(answer.vectors)} vectors for {len(submission.inputs)} inputs"
            raise Internal(message, reason="BAD_ANSWER")
        return answer

    def on_ready(self, stream: Stream) -> None:
        """Take or refuse the replica by its Hello."""
        hello = stream.hello
        card = hello.models[0] if hello.models else common_pb2.ModelCard()
        theirs = card.fingerprint.vocabulary
        if theirs and theirs != self._vocabulary:
            message = (
                f"it speaks another vocabulary ({theirs}, here {self._vocabulary}): "
                "start both tiers with the same --model"
            )
            if self._refused_as != (theirs, hello.epoch):
                self._refused_as = (theirs, hello.epoch)
                log.error("model tier refused: %s", message, extra=fields(target=self.target, model=card.name))
            raise FailedPrecondition(message, reason="VOCABULARY_MISMATCH")
        self._accepted = stream
        self._streams.add(stream)
        self._outcomes.on_stream()
        self._follow_cache(hello.epoch, card)
        self.max_context_tokens, self.vocab_size = card.max_context_tokens, card.vocab_size
        self.adapters = frozenset(card.adapters)
        self.generates, self.embedding_size = generates(card), card.embedding_size
        self._draining = False
        self._num_reported = self._num_open_at_report = 0
        self._allowance = Allowance(self._flow.on_lapse if self._flow is not None else None)
        stream.before_write = lambda frame: self._add_demand(stream, frame)
        log.info("model tier ready", extra=fields(target=self.target, model=card.name, epoch=hello.epoch))
        asyncio.get_running_loop().call_soon(self._on_change)

    def on_frame(self, stream: Stream, frame: Any) -> None:
        """Hand out what one engine step gave. Linear in its tokens."""
        if frame.handles or frame.logprobs:
            self._hand_out(stream.receivers, frame)
            self._outcomes.on_tokens(stream is self._accepted, frame.handles)
        if frame.finishes:
            self._end(stream, frame.finishes)
        if frame.models and stream is self._accepted:
            self.adapters = frozenset(frame.models[0].adapters)
            self._on_change()
        if frame.HasField("load"):
            self._take_load(stream, frame.load)
        if frame.HasField("credit") and stream is self._accepted:
            self._take_credit(frame)

    def on_lost(self, stream: Stream, receivers: dict[int, TokenReceiver], error: TokenwireError) -> None:
        """Tell everyone who waits."""
        self._streams.discard(stream)
        if not self._closing and not self._draining and not stream.draining:
            self._outcomes.on_lost(stream is self._accepted, receivers, error)
        if receivers or (stream is self._accepted and not stream.draining and not self._closing):
            extra = fields(target=self.target, num_open=len(receivers), error=error.message)
            log.warning("model tier lost", extra=extra)
        for receiver in receivers.values():
            _guard(receiver, receiver.on_lost, error)
        self._on_change()

    def _hand_out(self, receivers: dict[int, TokenReceiver], frame: Any) -> None:
        handles, token_ids, counts = list(frame.handles), list(frame.token_ids), list(frame.counts)
        counted = len(counts) == len(handles) and sum(counts) == len(token_ids)
        if not (counted if counts else len(handles) == len(token_ids)):
            raise Internal(
                f"{self.target} sent a frame whose columns do not match: {len(handles)} handles, "
                f"{len(counts)} counts, {len(token_ids)} token ids",
                reason="BAD_FRAME",
            )
        if not counts and not frame.logprobs:
            self._hand_out_singly(receivers, handles, token_ids)
            return
        logprobs = {message.handle: logprobs_from_wire(message.tokens, message.prompt) for message in frame.logprobs}
        begin = 0
        for handle, count in zip(handles, counts or [1] * len(handles), strict=True):
            end = begin + count
            receiver = receivers.get(handle)
            if receiver is not None:
                try:
                    receiver.on_tokens(token_ids[begin:end], logprobs.pop(handle, None) if logprobs else None)
                except Exception as error:
                    _fail(receiver, error)
            begin = end
        for handle, found in logprobs.items():  # of prompts whose first token is yet to come
            receiver = receivers.get(handle)
            if receiver is not None:
                _guard(receiver, receiver.on_tokens, (), found)

    def _hand_out_singly(
        self, receivers: dict[int, TokenReceiver], handles: Sequence[int], token_ids: Sequence[int]
    ) -> None:
        """One token each, which is what most frames have."""
        for handle, token_id in zip(handles, token_ids, strict=True):
            receiver = receivers.get(handle)
            if receiver is not None:
                try:
                    receiver.on_token(token_id)
                except Exception as error:
                    _fail(receiver, error)

    def _take_credit(self, frame: Any) -> None:
        credit = frame.credit
        self._allowance.lease(credit.requests, credit.tokens, credit.ttl_ms / 1000, idle=not frame.load.queued)
        if self._flow is not None:
            self._flow.on_room()

    def _add_demand(self, stream: Stream, frame: Any) -> None:
        """Every frame up says all that is held: one that says nothing means nothing."""
        held = self._flow.demand() if self._flow is not None and stream is self._stream else ()
        if len(held) > MAX_DEMANDS:
            held = sorted(held, key=lambda each: each.num_requests, reverse=True)
            rest = held[MAX_DEMANDS - 1 :]
            requests, tokens = sum(each.num_requests for each in rest), sum(each.num_tokens for each in rest)
            held = [*held[: MAX_DEMANDS - 1], Held(0, "", requests, tokens)]
        for each in held:
            frame.demand.add(
                priority=each.priority, tenant=each.tenant, requests=each.num_requests, tokens=each.num_tokens
            )

    def _end(self, stream: Stream, finishes: Sequence[common_pb2.Finish]) -> None:
        """Hand out terminal events. How they ended is told first: some go elsewhere at once."""
        ended = [
            (receiver, finish.handle, terminal_from_wire(finish))
            for finish in finishes
            if (receiver := stream.receivers.pop(finish.handle, None)) is not None
        ]
        if not self._draining and not stream.draining:
            current = stream is self._accepted
            self._outcomes.on_finishes(current, [(handle, terminal) for _, handle, terminal in ended])
        for receiver, _, terminal in ended:
            _guard(receiver, receiver.on_finish, terminal)

    def _follow_cache(self, epoch: int, card: common_pb2.ModelCard) -> None:
        self.cache.connect(epoch, card.hash_scheme, card.block_size)
        if self._follower is not None and card.hash_scheme and self._link is not None:
            self._follower.follow(self._link.stub.SubscribeCacheEvents)

    def _take_load(self, stream: Stream, load: common_pb2.Load) -> None:
        self._num_reported = load.running + load.queued
        self._num_open_at_report = len(stream.receivers) + self._num_embedding
        self._max_batch_size = max(1, load.max_batch_size)
        if load.draining != self._draining:
            self._draining = load.draining
            self._on_change()


def embedding_to_wire(submission: EmbeddingSubmission) -> model_pb2.ModelServiceEmbedRequest:
    """Inputs to embed, as a message."""
    return model_pb2.ModelServiceEmbedRequest(
        context=context_to_wire(submission.context),
        inputs=[common_pb2.TokenIds(ids=ids) for ids in submission.inputs],
        options=embedding_options_to_wire(submission.options),
        fingerprint=common_pb2.Fingerprint(vocabulary=submission.vocabulary),
    )


def _guard(receiver: TokenReceiver, call: Callable[..., None], *arguments: Any) -> None:
    """A bug with one sequence ends that sequence, not the session of all."""
    try:
        call(*arguments)
    except Exception as error:
        _fail(receiver, error)


def _fail(receiver: TokenReceiver, error: Exception) -> None:
    log.error("a sequence failed", exc_info=error)
    receiver.on_failed(Internal(f"text could not be made of the model's tokens: {type(error).__name__}"))
