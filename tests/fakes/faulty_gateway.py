"""A gateway between the conformance kit and a right one, which does one thing wrong."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tests.fakes.loopback import on_loopback
from tokenwire.channels import aio_channel
from tokenwire.status import STATUS_DETAILS_KEY
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2_grpc, tokenizer_pb2

Down = Callable[[Any], Iterator[Any]]


def finish_twice(frame: Any) -> Iterator[Any]:
    frame.finishes.extend(list(frame.finishes))
    yield frame


def row_after_finish(frame: Any) -> Iterator[Any]:
    yield frame
    for finish in frame.finishes:
        yield tokenizer_pb2.SessionResponse(handles=[finish.handle], texts=["more"], num_tokens=[0])


def columns_differ(frame: Any) -> Iterator[Any]:
    if frame.texts:
        del frame.texts[-1]
    yield frame


def unknown_handle(frame: Any) -> Iterator[Any]:
    for finish in frame.finishes:
        finish.handle += 1000
    yield frame


def no_reason(frame: Any) -> Iterator[Any]:
    for finish in frame.finishes:
        finish.reason = pb.FINISH_REASON_UNSPECIFIED
    yield frame


def wrong_usage(frame: Any) -> Iterator[Any]:
    for finish in frame.finishes:
        finish.usage.completion_tokens += 1
    yield frame


def every_end_is_length(frame: Any) -> Iterator[Any]:
    for finish in frame.finishes:
        if finish.reason == pb.FINISH_REASON_CANCELLED:
            finish.reason = pb.FINISH_REASON_LENGTH
    yield frame


def no_deadline(frame: Any) -> Iterator[Any]:
    for finish in list(frame.finishes):
        if finish.reason == pb.FINISH_REASON_DEADLINE:
            frame.finishes.remove(finish)
    yield frame


def hello_of_the_future(frame: Any) -> Iterator[Any]:
    if frame.HasField("hello"):
        frame.hello.protocol_version = 2
    yield frame


def hello_with_more(frame: Any) -> Iterator[Any]:
    if frame.HasField("hello"):
        frame.models.add(name="more")
    yield frame


SESSION_FAULTS: dict[str, tuple[Down, str]] = {
    fault.__name__: (fault, case)
    for fault, case in (
        (finish_twice, "session.submits"), (row_after_finish, "session.half-close"),
        (columns_differ, "session.submits"),
        (unknown_handle, "session.submits"), (no_reason, "session.choices"),
        (wrong_usage, "session.submits"),
        (every_end_is_length, "session.cancel"), (hello_of_the_future, "session.hello"),
        (hello_with_more, "session.hello"), (no_deadline, "session.timeout-held"),
    )
}  # fmt: skip
"""What is done to frames on their way down, and the case that must see it."""


def cancel_is_ignored(frame: Any) -> None:
    del frame.cancels[:]


def credit_is_ignored(frame: Any) -> None:
    for submit in frame.submits:
        submit.ClearField("initial_credit")


def any_handle(frame: Any) -> None:
    for submit in frame.submits:
        submit.handle = max(submit.handle, 1)


def no_time_is_no_limit(frame: Any) -> None:
    for submit in frame.submits:
        submit.request.context.ClearField("timeout_ms")


def any_request_id(frame: Any) -> None:
    for submit in frame.submits:
        submit.request.context.ClearField("request_id")


def a_cancel_frees_the_id(frame: Any) -> None:
    for submit in frame.submits:
        if submit.handle == 3:
            submit.request.context.ClearField("request_id")


UP_FAULTS: dict[str, Callable[[Any], None]] = {
    fault.__name__: fault
    for fault in (
        cancel_is_ignored, credit_is_ignored, any_handle, any_request_id, a_cancel_frees_the_id, no_time_is_no_limit
    )
}  # fmt: skip
"""What is done to frames on their way up."""


class FaultyGateway(gateway_pb2_grpc.GenerationServiceServicer):
    def __init__(self, channel: grpc.aio.Channel, fault: str) -> None:
        self._stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)
        self._fault = fault
        self._down = SESSION_FAULTS[fault][0] if fault in SESSION_FAULTS else lambda frame: iter([frame])

    async def ListModels(self, request: Any, context: Any) -> Any:
        return await self._stub.ListModels(request)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if self._fault == "wrong_code" and request.options.sampling.temperature < 0:
            await context.abort(grpc.StatusCode.INTERNAL, "oops")
        call = self._stub.Generate(request)
        try:
            async for response in call:
                for each in self._generate(response):
                    yield each
        except grpc.RpcError as error:
            details = () if self._fault == "no_details" else call_details(error)
            await context.abort(error.code(), error.details(), details)

    def _generate(self, response: Any) -> Iterator[Any]:
        if response.HasField("finish"):
            if self._fault == "no_finish":
                return
            if self._fault == "seconds_finish":
                yield response
            if self._fault == "stop_string_in_text" and response.finish.HasField("stop_string"):
                response.delta.text += response.finish.stop_string
            if self._fault == "deadline_is_length" and response.finish.reason == pb.FINISH_REASON_DEADLINE:
                response.finish.reason = pb.FINISH_REASON_LENGTH
        yield response

    async def Session(self, requests: Any, context: Any) -> None:
        async def up() -> AsyncIterator[Any]:
            async for frame in requests:
                if self._fault in UP_FAULTS:
                    UP_FAULTS[self._fault](frame)
                yield frame

        call = self._stub.Session(up())
        try:
            async for frame in call:
                for each in self._down(frame):
                    await context.write(each)
        except grpc.RpcError as error:
            await context.abort(error.code(), error.details(), call_details(error))


OTHER_FAULTS = {
    "wrong_code": "generate.bad-field",
    "no_details": "generate.bad-field",
    "no_finish": "generate.length",
    "seconds_finish": "generate.length",
    "stop_string_in_text": "generate.stop-string",
    "deadline_is_length": "generate.timeout",
    "cancel_is_ignored": "session.credit-cancel",
    "credit_is_ignored": "session.credit",
    "any_handle": "refusal.handle-order",
    "any_request_id": "session.request-id",
    "a_cancel_frees_the_id": "session.request-id-choices",
    "no_time_is_no_limit": "session.no-time",
}


def call_details(error: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in error.trailing_metadata() or () if key == STATUS_DETAILS_KEY)


@asynccontextmanager
async def faulty_gateway(target: str, fault: str) -> AsyncIterator[str]:
    """Its address."""
    async with aio_channel(target) as channel:
        server = grpc.aio.server()
        gateway_pb2_grpc.add_GenerationServiceServicer_to_server(FaultyGateway(channel, fault), server)
        async with on_loopback(server) as address:
            yield address
