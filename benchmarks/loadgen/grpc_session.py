"""One Session: all requests on one bidi stream of the gateway, told apart by handle."""

import asyncio
import time
from typing import Any

from benchmarks.loadgen.grpc_messages import generation_options, prompt_fields, settle
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work
from tokenwire.channels import aio_channel
from tokenwire.errors import TokenwireError
from tokenwire.requests import CancelReason
from tokenwire.session import SessionClient, SessionStream
from tokenwire.v1 import gateway_pb2_grpc, tokenizer_pb2

OPEN_TIMEOUT_S = 30.0


class Receiver:
    """One open request."""

    __slots__ = ("ended", "record", "texts")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.texts: list[str] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SessionStreamClient:
    """The project's own session client, with a listener that only takes times."""

    request_type: Any = tokenizer_pb2.SessionRequest

    def __init__(self, target: str, model: str, work: Work) -> None:
        self._target = target
        self._model = model
        self._work = work
        self._options = generation_options(work)
        self._channel: Any = None
        self._session: Any = None
        self._ready = asyncio.Event()

    async def open(self) -> None:
        self._channel = aio_channel(self._target)
        self._session = SessionClient(self._target, self.open_call(self._channel), self.request_type, self)
        self._session.start()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError:
            error = self._session.last_error
            await self.close()
            raise error from None

    async def ask(self, prompt: list[int] | str, record: Record) -> None:
        stream: SessionStream[Receiver] | None = self._session.stream
        if stream is None:
            raise self._session.last_error
        receiver = Receiver(record)
        handle = stream.open([receiver])
        stream.submit(self.submit_of(handle, prompt))
        try:
            await receiver.ended
        finally:
            if stream.receivers.pop(handle, None) is not None:
                stream.cancel(handle, CancelReason.CLIENT)
        record.text = "".join(receiver.texts)

    async def close(self) -> None:
        await self._session.close()
        await self._channel.close()

    def open_call(self, channel: Any) -> Any:
        """The method that the stream is opened with."""
        return gateway_pb2_grpc.GenerationServiceStub(channel).Session  # type: ignore[no-untyped-call]

    def submit_of(self, handle: int, prompt: list[int] | str) -> Any:
        """One request."""
        request = tokenizer_pb2.TextRequest(model=self._model, options=self._options, **prompt_fields(prompt))
        return tokenizer_pb2.Submit(handle=handle, request=request)

    def on_ready(self, _: SessionStream[Receiver]) -> None:
        """The stream is open."""
        self._ready.set()

    def on_frame(self, stream: SessionStream[Receiver], frame: Any) -> None:
        """One step's text for all requests, and their ends."""
        now_s = time.perf_counter()
        receivers = stream.receivers
        for handle, text, num_tokens in zip(frame.handles, frame.texts, frame.num_tokens, strict=True):
            receiver = receivers.get(handle)
            if receiver is not None and num_tokens:
                receiver.record.piece(now_s)
                receiver.record.streamed(num_tokens)
                receiver.texts.append(text)
        for finish in frame.finishes:
            receiver = receivers.pop(finish.handle, None)
            if receiver is not None and not receiver.ended.done():
                receiver.record.ended_s = now_s
                settle(receiver.record, finish)
                receiver.ended.set_result(None)

    def on_lost(self, _: SessionStream[Receiver], receivers: dict[int, Receiver], error: TokenwireError) -> None:
        """The stream broke."""
        for receiver in receivers.values():
            if not receiver.ended.done():
                receiver.ended.set_exception(error)
