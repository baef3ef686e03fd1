"""ModelService: per-request streams, sessions, and what the tier says of itself."""

import logging
from collections.abc import AsyncIterator

import grpc

from model_svc.backlog import RETRY_AFTER_S
from model_svc.credits import Lease, Lessor
from model_svc.embedding_request import EmbeddingRequest, VectorCollector, embedding_sequences
from model_svc.engine_client import EngineClient
from model_svc.model_card import TierState
from model_svc.request_stream import RequestStream
from model_svc.sessions import TokenSession, request_from_wire
from tokenwire.embedding_wire import POOLING_TO_WIRE, embedding_options_from_wire, vectors_to_wire
from tokenwire.errors import FailedPrecondition, Unavailable
from tokenwire.logs import fields
from tokenwire.requests import CancelReason
from tokenwire.sampling import SCALARS
from tokenwire.session_server import run_session
from tokenwire.settings import ServerSettings
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc
from tokenwire.version import __version__
from tokenwire.wire import context_from_wire, usage_to_wire

log = logging.getLogger(__name__)


def embedding_request_from_wire(
    message: model_pb2.ModelServiceEmbedRequest, *, call_remaining_s: float | None = None
) -> EmbeddingRequest:
    """A call to embed as plain values. Raises InvalidRequest."""
    return EmbeddingRequest(
        context=context_from_wire(message.context, call_remaining_s=call_remaining_s),
        inputs=[list(each.ids) for each in message.inputs],
        options=embedding_options_from_wire(message.options),
        model=message.model,
        vocabulary=message.fingerprint.vocabulary,
    )


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers ModelService."""

    def __init__(self, engine: EngineClient, state: TierState, settings: ServerSettings) -> None:
        self._engine = engine
        self._state = state
        self._settings = settings
        self._sessions: set[TokenSession] = set()
        self._lessor = Lessor()

    def check_integrity(self) -> None:
        """Raise AssertionError unless the credits given to sessions add up."""
        self._lessor.check_integrity()

    @property
    def leased(self) -> Lease:
        """What all sessions together were told last that they may submit."""
        return self._lessor.leased

    async def Generate(
        self, message: model_pb2.ModelServiceGenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[model_pb2.ModelServiceGenerateResponse]:
        """One request. Where no choice went well, the call's status says why."""
        request = request_from_wire(message.request, call_remaining_s=context.time_remaining())
        self._engine.info  # noqa: B018  refuses with Unavailable while the engine is down
        grammar = await self._state.grammar(request)
        sequences = self._state.admission().sequences(request, self._engine.next_id, grammar)
        self._engine.admit(sequences)
        stream = RequestStream(len(sequences))
        for choice, sequence in enumerate(sequences):
            self._engine.submit(sequence, stream, choice, request.context.traceparent)
        try:
            while stream.num_open:
                for response in await stream.take():
                    yield response
            if stream.failure is not None:
                raise stream.failure
        finally:
            for sequence in sequences:
                self._engine.abort(sequence.sequence_id, CancelReason.CLIENT)
            log.debug("generate ended", extra=fields(request_id=request.context.request_id, open=stream.num_open))

    async def Session(
        self,
        frames: AsyncIterator[model_pb2.ModelServiceSessionRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        """Many requests on one stream."""
        if self._state.draining:
            raise Unavailable("the model tier is shutting down", reason="DRAINING", retry_after_s=RETRY_AFTER_S)
        self._engine.info  # noqa: B018  refuses with Unavailable while the engine is down
        session = TokenSession(self._engine, self._state, self._lessor, self._sessions.discard)
        self._sessions.add(session)
        await run_session(
            frames,
            context,
            session,
            max_age_s=self._settings.max_connection_age_s,
            age_grace_s=self._settings.max_connection_age_grace_s,
        )

    async def Embed(
        self, message: model_pb2.ModelServiceEmbedRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.ModelServiceEmbedResponse:
        """Vectors of token id sequences. A caller that leaves takes what is not computed yet back."""
        request = embedding_request_from_wire(message, call_remaining_s=context.time_remaining())
        sequences = embedding_sequences(request, self._state.admission(), self._engine.next_id)
        self._engine.admit(sequences)
        collector = VectorCollector(len(sequences))
        for index, sequence in enumerate(sequences):
            self._engine.submit(sequence, collector, index, request.context.traceparent)
        try:
            vectors = await collector.vectors()
        finally:
            for sequence in sequences:
                self._engine.abort(sequence.sequence_id, CancelReason.CLIENT)
        return model_pb2.ModelServiceEmbedResponse(
            embeddings=vectors_to_wire(vectors), usage=usage_to_wire(collector.usage)
        )

    async def GetModelInfo(
        self, message: model_pb2.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.GetModelInfoResponse:
        """What is served."""
        info = self._engine.info
        defaults = info.sampling_defaults
        return model_pb2.GetModelInfoResponse(
            model=self._state.card(),
            eos_token_ids=info.eos_token_ids,
            sampling_defaults=common_pb2.SamplingParams(
                **{name: value for name in SCALARS if (value := getattr(defaults, name)) is not None}
            ),
            device=info.device,
            dtype=info.dtype,
            attention=info.attention,
            version=__version__,
            epoch=self._engine.epoch,
            pooling=POOLING_TO_WIRE[info.pooling],
        )

    async def GetLoad(
        self, message: model_pb2.GetLoadRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.GetLoadResponse:
        """How busy it is."""
        return model_pb2.GetLoadResponse(load=self._state.load())

    async def SubscribeCacheEvents(
        self, message: model_pb2.SubscribeCacheEventsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[model_pb2.SubscribeCacheEventsResponse]:
        """Changes of the prefix cache until the caller leaves or this tier drains."""
        if not self._state.hash_scheme:
            raise FailedPrecondition("the prefix cache is off (prefix_cache)", reason="PREFIX_CACHE_OFF")
        async for event in self._engine.cache_events.subscribe(message.epoch, message.sequence_number):
            yield model_pb2.SubscribeCacheEventsResponse(
                epoch=event.epoch,
                sequence_number=event.number,
                **{event.change.value: model_pb2.CacheBlocks(hashes=event.hashes)},
                continues=event.continues,
            )

    def announce_card(self) -> None:
        """What the model's card says has changed: every peer hears of it."""
        for session in self._sessions:
            session.announce_card()

    def end_sessions(self) -> None:
        """End every session, once its terminal events are sent: their engine is gone, and with it what peers know."""
        for session in self._sessions:
            session.end(Unavailable("the engine process was lost", reason="ENGINE_LOST"))

    def drain_sessions(self) -> None:
        """Ask every peer to put new Submits on another stream: this tier stops."""
        for session in self._sessions:
            session.drain("the model tier moves on", self._settings.drain_timeout_s)
        self._engine.cache_events.close()

    def close_sessions(self) -> None:
        """End every session as soon as its terminal events are sent."""
        for session in self._sessions:
            session.half_close()
