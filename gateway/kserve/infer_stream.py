"""One call of ModelStreamInfer: many requests at once, each answered to its last answer, in whatever order they come.

One task reads and one writes, whatever the number of requests. While a slow client does not take what there is, the
texts of its requests coalesce, and past a bound no more of its requests are read. Does not know tiers.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc

from gateway.backend import RETRY_AFTER_S
from gateway.generation import Generation, now_plus
from gateway.http.errors import renamed
from gateway.kserve.answers import Answers, failed
from gateway.kserve.inference import open_request, request_id_of
from gateway.kserve.model import MODEL_NAME, TEXT_INPUT, VERSION
from gateway.kserve.request import FINAL, read_request
from gateway.metrics import RequestRecord
from gateway.streams import TextStream
from tokenwire.errors import TokenwireError, Unavailable, let_go
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.requests import MAX_MODEL_CHARS


class _Running:
    """One request that is being answered."""

    __slots__ = ("answers", "record", "stream")

    def __init__(self, record: RequestRecord, stream: TextStream, answers: Answers) -> None:
        self.record = record
        self.stream = stream
        self.answers = answers

    def take(self) -> Iterator[pb.ModelStreamInferResponse]:
        """What is to be sent now. Raises the error that ended it, behind the last text before it."""
        try:
            for response in self.answers.on_stream(self.stream.take_events()):
                yield pb.ModelStreamInferResponse(infer_response=response)
        except TokenwireError as error:
            self.record.failed(error)
            self.stream.close()
            raise renamed(error, TEXT_INPUT) from None

    def close(self) -> None:
        """Cancel what still runs, count and log."""
        self.stream.listen(None)
        self.stream.close()
        self.record.close()


class InferStream:
    """The server's side of one call."""

    def __init__(
        self, generation: Generation, on_close: Callable[["InferStream"], None], *, errors_end_call: bool = False
    ) -> None:
        """`errors_end_call`: the first request's error is the call's status, and ends the others with it."""
        self._generation = generation
        self._on_close = on_close
        self._errors_end_call = errors_end_call
        self._ends_with: TokenwireError | None = None
        self._running: set[_Running] = set()
        self._ready: dict[_Running, None] = {}
        """Those with something to send, longest waiting first."""
        self._refused: deque[pb.ModelStreamInferResponse] = deque()
        """The only answers of requests that could not begin."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._half_closed = self._draining = False

    async def run(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext, traceparent: str
    ) -> None:
        """Serve until the client has no more requests and each has its last answer. Raises what ends the call."""
        deadline_s = now_plus(context.time_remaining())
        reader = asyncio.ensure_future(self._read(requests, deadline_s, traceparent))
        writer = asyncio.ensure_future(self._write(context))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
                self._half_closed = True
                self._wake.set()
            await writer
        finally:
            for running in self._running:
                running.close()
            self._running.clear()
            self._on_close(self)
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)  # what mattered has been raised above

    def drain(self) -> None:
        """End the call with Unavailable as soon as nothing runs on it; until then requests are refused one by one."""
        self._draining = True
        self._wake.set()

    async def _read(
        self, requests: AsyncIterator[pb.ModelInferRequest], deadline_s: float | None, traceparent: str
    ) -> None:
        most = self._generation.settings.max_concurrent_requests
        async for message in requests:
            while len(self._running) + len(self._refused) >= most:
                self._room.clear()
                await self._room.wait()
            self._start(message, deadline_s, traceparent)

    def _start(self, message: pb.ModelInferRequest, deadline_s: float | None, traceparent: str) -> None:
        """Send one request down, or refuse it."""
        record = self._generation.record("grpc.model_stream_infer")
        record.request_id = request_id_of(message.id)
        try:
            record.asks_for(message.model_name, MODEL_NAME)
            self._generation.refuse_when_draining()  # a client here has no other way to hear of it
            stream, answers = open_request(
                self._generation,
                record,
                read_request(message),
                request_id=record.request_id,
                call_deadline_s=deadline_s,
                traceparent=traceparent,
            )
        except TokenwireError as error:
            let_go(error)
            record.failed(error)
            record.close()
            if self._errors_end_call:
                self._ends_with = renamed(error, TEXT_INPUT)
                self._wake.set()
                return
            head = pb.ModelInferResponse(
                model_name=message.model_name[:MAX_MODEL_CHARS], model_version=VERSION, id=message.id
            )
            head.parameters[FINAL].bool_param = True
            self._refused.append(failed(renamed(error, TEXT_INPUT).told, head))
            self._wake.set()
            return
        running = _Running(record, stream, answers)
        self._running.add(running)
        stream.listen(lambda: self._has_news(running))
        if stream.has_more:
            self._has_news(running)

    def _has_news(self, running: _Running) -> None:
        self._ready[running] = None
        self._wake.set()

    async def _write(self, context: Any) -> None:
        """Send what there is, one request after the other, as fast as the client takes it."""
        while True:
            if self._ends_with is not None:
                raise self._ends_with
            if self._refused:
                await context.write(self._refused.popleft())
                self._room.set()
            elif self._ready:
                await self._send(next(iter(self._ready)), context)
            elif self._running or not (self._half_closed or self._draining):
                self._wake.clear()
                await self._wake.wait()
            elif self._half_closed:
                return
            else:
                message = "the gateway is shutting down: open a stream elsewhere"
                raise Unavailable(message, reason="DRAINING", retry_after_s=RETRY_AFTER_S)

    async def _send(self, running: _Running, context: Any) -> None:
        del self._ready[running]
        try:
            for response in running.take():
                await context.write(response)
        except TokenwireError as error:
            let_go(error)
            if self._errors_end_call:
                raise
            await context.write(running.answers.failed(error.told))
        if running.stream.over:
            self._running.discard(running)
            self._ready.pop(running, None)
            running.close()
            self._room.set()
        elif running.stream.has_more:
            self._ready[running] = None
