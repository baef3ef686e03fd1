"""Typed errors on every call: what a handler raises becomes a status with details; what cannot be read is refused.

One interceptor per server, so that no handler can forget. Knows nothing of any service. Counts the calls that run, so
that a server which drains knows when there is nothing left to wait for.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tokenwire.errors import Internal, InvalidRequest, TokenwireError, Unsupported
from tokenwire.status import abort

log = logging.getLogger(__name__)

ARITY = {False: "unary", True: "stream"}
NOT_PROTOBUF = "the message is not valid protobuf of this type, or a text in it is not valid UTF-8"

WATCHES = {
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/tokenwire.v1.ModelService/SubscribeCacheEvents",
}
"""Calls that go on for as long as the peer likes and end without a loss: nobody waits for them."""


class RunningCalls:
    """How many calls run that are worth waiting for. Lives on the event loop."""

    def __init__(self) -> None:
        self._number = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._number += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._number -= 1
        if not self._number:
            self._none.set()

    async def wait_none(self) -> None:
        """Until none runs."""
        await self._none.wait()


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands where a message should be that could not be parsed."""

    description: str
    """What is wrong with it, for its sender."""


class TypedErrors(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Maps exceptions to statuses. A bug is logged with its traceback and answered INTERNAL without it."""

    def __init__(self) -> None:
        self.running = RunningCalls()
        """All calls but WATCHES."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Wrap whatever handler answers this method."""
        handler = await continuation(details)
        if handler is None:
            return handler
        kind = f"{ARITY[handler.request_streaming]}_{ARITY[handler.response_streaming]}"
        behaviour = getattr(handler, kind)
        wrap = _wrap_generator if inspect.isasyncgenfunction(behaviour) else _wrap_coroutine
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            wrap(behaviour, handler.request_streaming, details.method, self._counter(details.method)),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _counter(self, method: str) -> AbstractContextManager[None]:
        return nullcontext() if method in WATCHES else self.running


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, UnicodeDecodeError) as error:
            return Malformed(f"{NOT_PROTOBUF} ({error})")

    return parse


def _wrap_coroutine(behaviour: Any, request_streaming: bool, method: str, counted: AbstractContextManager[None]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        with counted:
            try:
                return await behaviour(_checked(request, request_streaming), context)
            except Exception as error:
                del request  # the call's context keeps the frames that end it
                await _answer(error, context, method)

    return call


def _wrap_generator(behaviour: Any, request_streaming: bool, method: str, counted: AbstractContextManager[None]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        with counted:
            try:
                async with aclosing(behaviour(_checked(request, request_streaming), context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                del request  # the call's context keeps the frames that end it
                await _answer(error, context, method)

    return call


def _checked(request: Any, request_streaming: bool) -> Any:
    if request_streaming:
        return _checked_stream(request)
    if isinstance(request, Malformed):
        raise _refusal(request)
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Malformed):
            raise _refusal(request)
        yield request


def _refusal(malformed: Malformed) -> InvalidRequest:
    return InvalidRequest(malformed.description, reason="MALFORMED_MESSAGE")


async def _answer(error: Exception, context: grpc.aio.ServicerContext, method: str) -> None:
    if isinstance(error, TokenwireError):
        await abort(context, error)
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        raise error
    if isinstance(error, NotImplementedError):  # the generated base class, for what no handler overrides
        await abort(context, Unsupported(f"{method} is not built in this release"))
    log.error("%s failed", method, exc_info=error)
    await abort(context, Internal(f"{method} failed: {type(error).__name__}; the server's log has the details"))
