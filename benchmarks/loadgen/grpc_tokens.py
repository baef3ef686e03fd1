"""One token Session with a model tier itself: what is left when the tiers above it are not there."""

import time
from typing import Any

from benchmarks.loadgen.grpc_messages import generation_options, settle
from benchmarks.loadgen.grpc_session import Receiver, SessionStreamClient
from benchmarks.loadgen.work import Work
from tokenwire.session import SessionStream
from tokenwire.v1 import model_pb2, model_pb2_grpc


class TokenSessionClient(SessionStreamClient):
    """Prompts are token ids; a piece is what one frame says of a sequence."""

    request_type = model_pb2.ModelServiceSessionRequest

    def __init__(self, target: str, model: str, work: Work) -> None:
        super().__init__(target, model, work)
        self._options = generation_options(work)

    def open_call(self, channel: Any) -> Any:
        """The method that the stream is opened with."""
        return model_pb2_grpc.ModelServiceStub(channel).Session  # type: ignore[no-untyped-call]

    def submit_of(self, handle: int, prompt: list[int] | str) -> Any:
        """One request. Raises ValueError for a text."""
        if isinstance(prompt, str):
            raise ValueError("a model tier takes token ids alone")
        request = model_pb2.TokenRequest(token_ids=prompt, options=self._options)
        return model_pb2.TokenSubmit(handle=handle, request=request)

    def on_frame(self, stream: SessionStream[Receiver], frame: Any) -> None:
        """One step's tokens for all requests, and their ends."""
        now_s = time.perf_counter()
        receivers = stream.receivers
        counts = frame.counts or [1] * len(frame.handles)
        for handle, count in zip(frame.handles, counts, strict=True):
            receiver = receivers.get(handle)
            if receiver is not None and count:
                receiver.record.piece(now_s)
                receiver.record.streamed(count)
        for finish in frame.finishes:
            receiver = receivers.pop(finish.handle, None)
            if receiver is not None and not receiver.ended.done():
                receiver.record.ended_s = now_s
                settle(receiver.record, finish)
                receiver.ended.set_result(None)
