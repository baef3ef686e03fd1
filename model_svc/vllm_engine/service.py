"""VllmEngine: what Shepherd Model Gateway asks of a worker, answered by this tier's engine.

Speaks the wire of the package `smg-grpc-proto`. Requests go through the admission of every other one.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2

from model_svc.embedding_request import EmbeddingRequest, VectorCollector, embedding_sequences
from model_svc.engine.sequence import Sequence as EngineSequence
from model_svc.engine_client import EngineClient
from model_svc.model_card import TierState
from model_svc.vllm_engine.answers import ChoiceAnswer, GenerateAnswers
from model_svc.vllm_engine.model_files import chunks_of, facts_of, tokenizer_bundle, tokenizer_of
from model_svc.vllm_engine.requests import EngineRequest, context_of, embed_inputs, generate_request
from model_svc.vllm_engine.stop_texts import StopTexts
from tokenwire.embeddings import EmbeddingOptions
from tokenwire.errors import AlreadyExists, InvalidRequest, NotFound, TokenwireError, Unsupported
from tokenwire.requests import CancelReason, FinishReason, Terminal
from tokenwire.sampling import NEUTRAL, SCALARS
from tokenwire.server import GrpcServer
from tokenwire.version import __version__

SERVER_TYPE = "vllm-grpc"
"""The name of the protocol, by which the peer knows how to speak."""


def add_to(server: GrpcServer, engine: EngineClient, state: TierState, folder: Path | None) -> None:
    """Offer the service. `folder`: the model's; None: it has none (mock engine)."""
    servicer = VllmEngineServicer(engine, state, folder)
    descriptor = pb.DESCRIPTOR.services_by_name["VllmEngine"]
    server.add(vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server, servicer, descriptor)


@dataclass(slots=True)
class Running:
    """One request to generate."""

    sequences: Sequence[EngineSequence] = ()
    """None yet while its constraint is being compiled."""
    aborted: bool = False


class VllmEngineServicer(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """Answers VllmEngine."""

    def __init__(self, engine: EngineClient, state: TierState, folder: Path | None) -> None:
        self._engine = engine
        self._state = state
        self._folder = folder
        self._facts = facts_of(folder)
        self._tokenizer = tokenizer_of(folder)
        self._running: dict[str, Running] = {}
        """By request id: what Abort takes back."""
        self._started_s = time.monotonic()
        self._last_receipt_s = 0.0
        """Unix time of the last request."""

    async def Generate(
        self, message: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        """One request, streamed or not. Where no choice went well, the call's status says why."""
        self._last_receipt_s = time.time()
        asked = generate_request(message, context.time_remaining())
        request = asked.request
        request_id = request.context.request_id
        if request_id in self._running:
            description = f"request_id: {request_id!r} is running: give each request its own"
            raise AlreadyExists(description, reason="DUPLICATE_REQUEST")
        self._refuse_stop_strings(asked)
        running = self._running[request_id] = Running()
        try:
            self._engine.info  # noqa: B018  refuses with Unavailable while the engine is down
            grammar = await self._state.grammar(request)
            sequences = self._state.admission().sequences(request, self._engine.next_id, grammar)
            answers = self._answers(asked, sequences)
            if running.aborted:
                answers.end_all(Terminal(FinishReason.CANCELLED))
            else:
                self._engine.admit(sequences)
                running.sequences = sequences
                for choice, sequence in enumerate(sequences):
                    self._engine.submit(sequence, answers, choice)
            while not answers.over:
                for response in await answers.take():
                    yield response
            if answers.failure is not None:
                raise answers.failure
        finally:
            del self._running[request_id]
            self._abort(running.sequences, CancelReason.CLIENT)

    async def Embed(self, message: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        """The vector of one sequence, pooled as the model was trained for, of unit length."""
        request = EmbeddingRequest(
            context=context_of(message.request_id, context.time_remaining()),
            inputs=embed_inputs(message),
            options=EmbeddingOptions(),
        )
        sequences = embedding_sequences(request, self._state.admission(), self._engine.next_id)
        self._engine.admit(sequences)
        collector = VectorCollector(len(sequences))
        self._engine.submit(sequences[0], collector, 0)
        try:
            (vector,) = await collector.vectors()
        finally:
            self._abort(sequences, CancelReason.CLIENT)
        values = memoryview(vector).cast("f")
        return pb.EmbedResponse(
            embedding=values, prompt_tokens=collector.usage.prompt_tokens, embedding_dim=len(values)
        )

    async def HealthCheck(
        self, message: pb.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> pb.HealthCheckResponse:
        """Whether the engine runs and takes requests. A full queue is not ill health."""
        try:
            self._engine.info  # noqa: B018  raises while the engine is down
        except TokenwireError as error:
            return pb.HealthCheckResponse(healthy=False, message=error.message)
        if self._state.draining:
            return pb.HealthCheckResponse(healthy=False, message="the model tier is shutting down")
        return pb.HealthCheckResponse(healthy=True, message="serving")

    async def Abort(self, message: pb.AbortRequest, context: grpc.aio.ServicerContext) -> pb.AbortResponse:
        """Take requests back; each still gets its last message, finish_reason "abort". Unknown ones are ignored."""
        for request_id in message.request_ids:
            if (running := self._running.get(request_id)) is not None:
                running.aborted = True
                self._abort(running.sequences, CancelReason.CLIENT)
        return pb.AbortResponse()

    async def GetModelInfo(
        self, message: pb.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelInfoResponse:
        """What is served."""
        info = self._engine.info
        path = str(self._folder or self._engine.settings.model)
        defaults = {
            name: value
            for name in SCALARS
            if (value := getattr(info.sampling_defaults, name)) is not None and value != getattr(NEUTRAL, name)
        }
        return pb.GetModelInfoResponse(
            model_path=path,
            is_generation=info.generates,
            max_context_length=info.max_context_tokens,
            vocab_size=info.vocab_size,
            served_model_name=info.model,
            tokenizer_path=path,
            model_type=self._facts.model_type,
            architectures=self._facts.architectures,
            eos_token_ids=info.eos_token_ids,
            pad_token_id=self._facts.pad_token_id,
            bos_token_id=self._facts.bos_token_id,
            max_req_input_len=info.max_context_tokens - 1,
            default_sampling_params_json=json.dumps(defaults) if defaults else "",
        )

    async def GetServerInfo(
        self, message: pb.GetServerInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetServerInfoResponse:
        """What this process is and does."""
        info = self._engine.info
        return pb.GetServerInfoResponse(
            active_requests=len(self._running),
            is_paused=self._engine.load.paused,
            last_receive_timestamp=self._last_receipt_s,
            uptime_seconds=time.monotonic() - self._started_s,
            server_type=SERVER_TYPE,
            data_parallel_size=1,
            block_size=0 if info.whole_sequences else info.block_size,
            attention_backend=info.attention,
            model_dtype=info.dtype,
            max_num_seqs=info.max_batch_size,
        )

    async def GetLoads(self, message: pb.GetLoadsRequest, context: grpc.aio.ServicerContext) -> pb.GetLoadsResponse:
        """How busy the one rank is; of the sections that can be asked for there is `core`."""
        if message.HasField("dp_rank") and message.dp_rank != 0:
            raise NotFound(f"dp_rank: {message.dp_rank} is not there: this worker has rank 0 alone")
        info, load = self._engine.info, self._engine.load
        queued, total = self._engine.backlog.num_queued, load.kv_blocks_total * info.block_size
        used = load.kv_blocks_used * info.block_size
        rank = pb.SchedulerLoad(
            dp_rank=0,
            num_running_reqs=load.running,
            num_waiting_reqs=queued,
            num_total_reqs=load.running + queued,
            num_used_tokens=min(used, 2**31 - 1),
            max_total_num_tokens=min(total, 2**31 - 1),
            token_usage=used / total if total else 0.0,
            utilization=load.running / info.max_batch_size,
            max_running_requests=info.max_batch_size,
            num_waiting_uncached_tokens=min(self._engine.backlog.num_queued_tokens, 2**31 - 1),
        )
        now = datetime.now(UTC).isoformat()
        return pb.GetLoadsResponse(timestamp=now, version=__version__, dp_rank_count=1, loads=[rank])

    async def GetTokenizer(
        self, message: Any, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """The tokenizer's files as a zip, for a peer that has no such folder."""
        if self._folder is None or self._tokenizer is None:
            raise NotFound("this worker's model has no tokenizer.json: give the gateway a --model-path")
        data = await asyncio.to_thread(tokenizer_bundle, self._folder)
        for piece, sha256 in chunks_of(data):
            yield common_pb2.GetTokenizerChunk(data=piece, sha256=sha256)

    async def SubscribeKvEvents(self, message: Any, context: grpc.aio.ServicerContext) -> NoReturn:
        """Not built: these events carry token ids, which this tier's do not."""
        raise Unsupported(
            "SubscribeKvEvents is not built: ModelService.SubscribeCacheEvents has this tier's own events"
        )

    async def FlushCache(self, message: Any, context: grpc.aio.ServicerContext) -> NoReturn:
        """Not built."""
        raise Unsupported("FlushCache is not built: the prefix cache gives way by itself")

    async def StartProfile(self, message: Any, context: grpc.aio.ServicerContext) -> NoReturn:
        """Not built."""
        raise Unsupported("StartProfile is not built: `make profile` shows where the time goes")

    async def StopProfile(self, message: Any, context: grpc.aio.ServicerContext) -> NoReturn:
        """Not built."""
        raise Unsupported("StopProfile is not built: `make profile` shows where the time goes")

    def _refuse_stop_strings(self, asked: EngineRequest) -> None:
        """Raise InvalidRequest for stop strings where there is no tokenizer."""
        if asked.stop_strings and self._tokenizer is None:
            description = "this worker's model has no tokenizer.json to look for them with"
            raise InvalidRequest.of("sampling_params.stop", description)

    def _answers(self, asked: EngineRequest, sequences: Sequence[EngineSequence]) -> GenerateAnswers:
        options = asked.request.options
        return GenerateAnswers(
            asked.request.token_ids,
            [ChoiceAnswer(index, self._stop_texts(asked)) for index in range(len(sequences))],
            stream=asked.stream,
            prompt_logprobs=options.prompt_logprobs is not None,
            stop_token_ids=options.stop.stop_token_ids,
            on_matched=lambda choice: self._abort([sequences[choice]], CancelReason.STOP_STRING),
        )

    def _stop_texts(self, asked: EngineRequest) -> StopTexts | None:
        if not asked.stop_strings or self._tokenizer is None:
            return None
        return StopTexts(
            self._tokenizer,
            asked.stop_strings,
            min_tokens=asked.request.options.stop.min_tokens,
            skip_special_tokens=asked.skip_special_tokens,
        )

    def _abort(self, sequences: Sequence[EngineSequence], reason: CancelReason) -> None:
        for sequence in sequences:
            self._engine.abort(sequence.sequence_id, reason)
