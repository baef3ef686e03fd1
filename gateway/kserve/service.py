"""GRPCInferenceService: the Open Inference Protocol, version 2, for clients of KServe and Triton.

Speaks the wire; what a request means is read in `request.py`, and it goes the way of every other request from there.
"""

from collections.abc import AsyncIterator, Iterable

import grpc

from gateway.generation import Generation, arriving, now_plus
from gateway.http.errors import renamed
from gateway.kserve.infer_stream import InferStream
from gateway.kserve.inference import open_request, request_id_of
from gateway.kserve.model import EXTENSIONS, MODEL_NAME, TEXT_INPUT, VERSION, metadata_of
from gateway.kserve.request import EMPTY_FINAL, read_request, refuse_version
from gateway.metadata import REQUEST_ID, TRACEPARENT, metadata_value
from tokenwire.errors import InvalidRequest, NotFound, TokenwireError
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.v1 import common_pb2
from tokenwire.version import __version__

STATUS_ERRORS = "triton_grpc_error"
"""Metadata with which Triton's clients ask for an error on a stream as the call's status."""


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol's side of the gateway."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._backends = generation.backends
        self._streams: set[InferStream] = set()

    def drain(self) -> None:
        """End streams that have nothing to do, and the others once they have nothing to do."""
        for stream in list(self._streams):
            stream.drain()

    async def ServerLive(
        self, message: pb.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        """It answers, so it does."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, message: pb.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Whether a tokenizer tier with a model behind it can be reached."""
        return pb.ServerReadyResponse(ready=self._ready)

    async def ModelReady(
        self, message: pb.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        """Whether this model can be asked; one that is not served is not ready."""
        served = message.name in _names(self._backends.models())
        return pb.ModelReadyResponse(ready=self._ready and served and message.version in ("", VERSION))

    async def ServerMetadata(
        self, message: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """What this is."""
        return pb.ServerMetadataResponse(name="tokenwire", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(
        self, message: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        with self._generation.record("grpc.model_metadata") as record:
            record.request_id = request_id_of(metadata_value(context, REQUEST_ID))
            record.asks_for(message.name, "name")
            who = arriving(record.request_id, priority=None, tenant=None, timeout_s=None)
            with self._generation.charged_call(who):
                cards = await self._backends.list_models(
                    timeout_s=context.time_remaining(), request_id=record.request_id
                )
            names = _names(cards)
            if message.name not in names:
                served = ", ".join(names) or "none"
                raise NotFound(
                    f"model {message.name!r:.80} is not served here; served: {served}", reason="MODEL_NOT_FOUND"
                )
            refuse_version(message.version)
            return metadata_of(message.name)

    async def ModelInfer(
        self, message: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """One answer, with everything that was generated."""
        with self._generation.record("grpc.model_infer") as record:
            record.request_id = request_id_of(message.id, request_id_of(metadata_value(context, REQUEST_ID)))
            await context.send_initial_metadata(((REQUEST_ID, record.request_id),))
            try:
                record.asks_for(message.model_name, MODEL_NAME)
                request = read_request(message)
                if request.stream:
                    raise InvalidRequest.of("stream", "true is not allowed in ModelInfer: use ModelStreamInfer")
                if request.empty_final:
                    raise InvalidRequest.of(EMPTY_FINAL, "ModelInfer has one answer: use ModelStreamInfer")
                stream, answers = open_request(
                    self._generation,
                    record,
                    request,
                    request_id=record.request_id,
                    call_deadline_s=now_plus(context.time_remaining()),
                    traceparent=metadata_value(context, TRACEPARENT),
                )
                try:
                    while events := await stream.next_events():
                        for _ in answers.collect(events):
                            pass
                    return answers.whole()
                finally:
                    stream.close()
            except TokenwireError as error:
                raise renamed(error, TEXT_INPUT) from None

    async def ModelStreamInfer(
        self, messages: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Many requests, each with as many answers as it takes."""
        self._generation.refuse_when_draining()
        errors_end_call = metadata_value(context, STATUS_ERRORS).lower() == "true"
        stream = InferStream(self._generation, self._streams.discard, errors_end_call=errors_end_call)
        self._streams.add(stream)
        await stream.run(messages, context, metadata_value(context, TRACEPARENT))

    @property
    def _ready(self) -> bool:
        return self._backends.ready and not self._generation.draining


def _names(cards: Iterable[common_pb2.ModelCard]) -> list[str]:
    """What can be asked for as a model: models and their adapters."""
    return [name for card in cards for name in (card.name, *card.adapters)]
