"""ModelAdminService: what an operator does to a running model tier."""

import logging

import grpc

from model_svc.engine_client import EngineClient
from tokenwire.v1 import model_pb2, model_pb2_grpc

log = logging.getLogger(__name__)


class ModelAdminServicer(model_pb2_grpc.ModelAdminServiceServicer):
    """Answers ModelAdminService. What is not built is answered UNIMPLEMENTED by the base class."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    async def LoadAdapter(
        self, message: model_pb2.LoadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.LoadAdapterResponse:
        """Load an adapter from below `adapter_folder`; answers once it can be asked for."""
        await self._engine.load_adapter(message.name, message.path)
        return model_pb2.LoadAdapterResponse()

    async def UnloadAdapter(
        self, message: model_pb2.UnloadAdapterRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.UnloadAdapterResponse:
        """Refuse new requests with an adapter; answers once the last one has ended and it is gone."""
        await self._engine.unload_adapter(message.name)
        return model_pb2.UnloadAdapterResponse()

    async def Pause(
        self, message: model_pb2.PauseRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.PauseResponse:
        """Stop starting new sequences, also in an engine that is restarted; those that run go on. Idempotent."""
        log.info("paused: nothing new starts")
        self._engine.pause(True)
        return model_pb2.PauseResponse()

    async def Resume(
        self, message: model_pb2.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.ResumeResponse:
        """Start new sequences again. Idempotent."""
        log.info("resumed")
        self._engine.pause(False)
        return model_pb2.ResumeResponse()
