"""A gRPC call per request: GenerationService.Generate, a stream of the server's."""

import time
from typing import Any

from benchmarks.loadgen.grpc_messages import generation_options, prompt_fields, settle
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work
from tokenwire.channels import aio_channel
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc


class GenerateClient:
    """All calls share one channel, that is one HTTP/2 connection."""

    def __init__(self, target: str, model: str, work: Work) -> None:
        self._target = target
        self._model = model
        self._work = work
        self._options = generation_options(work)
        self._channel: Any = None
        self._stub: Any = None

    async def open(self) -> None:
        self._channel = aio_channel(self._target)
        self._stub = gateway_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def ask(self, prompt: list[int] | str, record: Record) -> None:
        request = gateway_pb2.GenerateRequest(
            model=self._model, prompts=[gateway_pb2.Prompt(**prompt_fields(prompt))], options=self._options
        )
        texts: list[str] = []
        call = self._stub.Generate(request)
        try:
            async for response in call:
                now_s = time.perf_counter()
                if response.delta.num_tokens:
                    record.piece(now_s)
                    record.streamed(response.delta.num_tokens)
                    texts.append(response.delta.text)
                if response.HasField("finish"):
                    record.ended_s = now_s
                    settle(record, response.finish)
        finally:
            call.cancel()
        record.text = "".join(texts)

    async def close(self) -> None:
        await self._channel.close()
