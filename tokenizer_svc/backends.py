"""Model tiers over the wire: one token Session per replica, and what it says of itself.

Turns columnar frames into calls of `TokenReceiver` and submissions into `TokenSubmit`, and tells how requests end. A
replica with another vocabulary is left out. Does not choose among replicas (see `router`) and does not know text.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from tokenizer_svc.allowance import Allowance
from tokenizer_svc.cache_events import CacheFollower
from tokenizer_svc.cache_view import CacheView
from tokenizer_svc.held_queue import Held
from tokenizer_svc.router import EmbeddingAnswer, EmbeddingSubmission, TokenReceiver, TokenSubmission
from tokenizer_svc.token_frames import add_demand, embedding_to_wire, guard, hand_out, submit_to_wire, take_finishes
from tokenwire.channels import TierChannel
from tokenwire.embedding_wire import generates, vectors_from_wire
from tokenwire.errors import FailedPrecondition, Internal, TokenwireError
from tokenwire.logs import fields
from tokenwire.requests import CancelReason
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.outcomes import Outcomes
from tokenwire.session import SessionClient, SessionStream
from tokenwire.status import from_rpc_error
from tokenwire.tls import ClientTls
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc
from tokenwire.wire import usage_from_wire

log = logging.getLogger(__name__)

Stream = SessionStream[TokenReceiver]


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
        on_handed_out: Callable[[float], None] | None = None,
    ) -> None:
        """`vocabulary`: our fingerprint. `on_change` is called when `ready` may have changed.

        `breaker`: a plain one where none is given. `follow_cache`: whether to subscribe to its cache events. `flow` is
        told of room; None: nothing is held. `tls`: None: it is called without. `on_handed_out` is told how many seconds
        each frame of tokens took to become text.
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
        self.said: common_pb2.Load | None = None
        """What it said last of its load; None: nothing, or it is not connected."""
        self._num_reported = 0
        self._num_open_at_report = 0
        self._max_batch_size = 1
        self._flow = flow
        self._allowance = Allowance()
        self._on_handed_out = on_handed_out
        self._num_embedding = 0
        """Inputs that it embeds for us."""

    def start(self) -> None:
        """Begin connecting in the background."""
        link: TierChannel[Any] = TierChannel(self.target, model_pb2_grpc.ModelServiceStub, self._tls)
        self._link = link
        self._client = SessionClient(
            self.target,
            lambda: link.refreshed().Session(),
            model_pb2.ModelServiceSessionRequest,
            self,
            link.told_to_move,
            beats=True,
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
    def epoch(self) -> int:
        """Of its engine; 0 while it is not connected."""
        stream = self._stream
        return int(stream.hello.epoch) if stream is not None else 0

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

    @property
    def credit_requests(self) -> int:
        """How many sequences its credits let go down now; 0 where it leases none."""
        return self._allowance.requests if self.ready else 0

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
        stream.submit(submit_to_wire(handle, submission))
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
        self._take_card(card)
        self._draining = False
        self.said = None
        self._num_reported = self._num_open_at_report = 0
        self._allowance = Allowance(self._flow.on_lapse if self._flow is not None else None)
        stream.before_write = lambda frame: self._add_demand(stream, frame)
        log.info("model tier ready", extra=fields(target=self.target, model=card.name, epoch=hello.epoch))
        asyncio.get_running_loop().call_soon(self._on_change)

    def on_frame(self, stream: Stream, frame: Any) -> None:
        """Hand out what one engine step gave. Linear in its tokens."""
        if frame.handles or frame.logprobs:
            began_s = time.perf_counter()
            hand_out(self.target, stream.receivers, frame, self.vocab_size)
            if self._on_handed_out is not None:
                self._on_handed_out(time.perf_counter() - began_s)
            self._outcomes.on_tokens(stream is self._accepted, frame.handles)
        if frame.finishes:
            self._end(stream, frame.finishes)
        if frame.models and stream is self._accepted:
            self._take_card(frame.models[0])
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
            guard(receiver, receiver.on_lost, error)
        self._on_change()

    def _take_credit(self, frame: Any) -> None:
        credit = frame.credit
        self._allowance.lease(credit.requests, credit.tokens, credit.ttl_ms / 1000, idle=not frame.load.queued)
        if self._flow is not None:
            self._flow.on_room()

    def _add_demand(self, stream: Stream, frame: Any) -> None:
        """Every frame up says all that is held: one that says nothing means nothing."""
        held = self._flow.demand() if self._flow is not None and stream is self._stream else ()
        add_demand(frame, held)

    def _end(self, stream: Stream, finishes: Sequence[common_pb2.Finish]) -> None:
        """Hand out terminal events. How they ended is told first: some go elsewhere at once."""
        ended = take_finishes(stream.receivers, finishes)
        if not self._draining and not stream.draining:
            current = stream is self._accepted
            self._outcomes.on_finishes(current, [(handle, terminal) for _, handle, terminal in ended])
        for receiver, _, terminal in ended:
            guard(receiver, receiver.on_finish, terminal)

    def _take_card(self, card: common_pb2.ModelCard) -> None:
        self.max_context_tokens, self.vocab_size = card.max_context_tokens, card.vocab_size
        self.adapters = frozenset(card.adapters)
        self.generates, self.embedding_size = generates(card), card.embedding_size

    def _follow_cache(self, epoch: int, card: common_pb2.ModelCard) -> None:
        self.cache.connect(epoch, card.hash_scheme, card.block_size)
        if self._follower is not None and card.hash_scheme and self._link is not None:
            self._follower.follow(self._link.stub.SubscribeCacheEvents)

    def _take_load(self, stream: Stream, load: common_pb2.Load) -> None:
        self.said = load
        self._num_reported = load.running + load.queued
        self._num_open_at_report = len(stream.receivers) + self._num_embedding
        self._max_batch_size = max(1, load.max_batch_size)
        if load.draining != self._draining:
            self._draining = load.draining
            self._on_change()
