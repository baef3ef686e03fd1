"""What is offered to browsers: the same servicers behind the same interceptors as on the gRPC port.

Stands where generated code wants a server. Does not know how calls come in.
"""

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from tokenwire.interceptor import ARITY


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service."""

    path: str
    request_class: Any
    """The generated class of its request."""
    streams_requests: bool
    streams_responses: bool


@dataclass(frozen=True, slots=True)
class CallDetails(grpc.HandlerCallDetails):  # type: ignore[misc]
    """What interceptors are told of a call before it runs."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class WebMethods:
    """Methods by path, and their handlers as the interceptors hand them out."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        """`interceptors`: of the gRPC server, the outermost first."""
        self._methods: dict[str, Method] = {}
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._services: set[str] = set()
        handler: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]] = self._registered
        for interceptor in reversed(interceptors):
            handler = functools.partial(interceptor.intercept_service, handler)
        self._intercepted = handler

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: Any, descriptor: Any) -> None:
        """Offer a service: the generated `add_…_to_server`, the servicer, and its service descriptor."""
        add_to_server(servicer, self)
        self._services.add(descriptor.full_name)
        for method in descriptor.methods:
            path = f"/{descriptor.full_name}/{method.name}"
            handler = self._handlers[path]
            request_class = GetMessageClass(method.input_type)
            self._methods[path] = Method(path, request_class, handler.request_streaming, handler.response_streaming)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Called by generated code, which says the same again by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """Called by generated code."""
        self._handlers.update({f"/{service}/{name}": _reading(handler) for name, handler in handlers.items()})

    def has_service(self, path: str) -> bool:
        """Whether a path is within a service that is offered."""
        return path.rpartition("/")[0][1:] in self._services

    def find(self, path: str) -> Method | None:
        """The method of a path."""
        return self._methods.get(path)

    async def handler(self, method: Method, metadata: tuple[tuple[str, str], ...]) -> grpc.RpcMethodHandler:
        """What answers one call of it. `metadata`: of the call.

        Takes what reads the request's message instead of the message: it is read within the interceptors.
        """
        return await self._intercepted(CallDetails(method.path, metadata))

    async def _registered(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handlers[details.method]


def _reading(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """The same, which has its message read once it is called. Methods on which clients stream are left as they are."""
    if handler.request_streaming:
        return handler
    kind = f"unary_{ARITY[handler.response_streaming]}"
    behaviour = getattr(handler, kind)

    async def call(read: Callable[[], Awaitable[Any]], context: Any) -> Any:
        return await behaviour(await read(), context)

    async def generate(read: Callable[[], Awaitable[Any]], context: Any) -> AsyncIterator[Any]:
        async with aclosing(behaviour(await read(), context)) as responses:
            async for response in responses:
                yield response

    wrapped = generate if inspect.isasyncgenfunction(behaviour) else call
    return getattr(grpc, f"{kind}_rpc_method_handler")(wrapped)
