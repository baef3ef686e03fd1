"""Lets gRPC calls in whose caller is known. Covers every service of the server, also those added later."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc

from gateway.identity.certificates import KINDS
from gateway.identity.identifier import Identifier
from gateway.identity.identity import CURRENT, NOBODY
from tokenwire.errors import PermissionDenied
from tokenwire.interceptor import ARITY

HEALTH = "/grpc.health.v1.Health/"
ADMIN = ("/grpc.channelz.",)
"""What tells of other callers' connections."""


class GrpcGate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Stands behind the interceptor that answers typed errors."""

    def __init__(self, identifier: Identifier, *, open_health: bool) -> None:
        self._identifier = identifier
        self._open_health = open_health

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
        wrap = self._generator if inspect.isasyncgenfunction(behaviour) else self._coroutine
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            wrap(behaviour, details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _coroutine(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            await self._let_in(context, method)
            return await behaviour(request, context)

        return call

    def _generator(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            await self._let_in(context, method)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return call

    async def _let_in(self, context: grpc.aio.ServicerContext, method: str) -> None:
        """Leave the caller's proof for the handler, which runs in this call's own task. Raises Unauthenticated."""
        if self._open_health and self._identifier.asks and method.startswith(HEALTH):
            CURRENT.set(NOBODY)
            return
        given = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        proof = await self._identifier.identify(given, lambda: names_of(context))
        if method.startswith(ADMIN) and not proof.identity().admin:
            raise PermissionDenied(f"{method} is for callers with admin rights", reason="ADMIN_ONLY")
        CURRENT.set(proof)


def names_of(context: grpc.aio.ServicerContext) -> Sequence[str]:
    """The URIs, DNS names and common name of the client's certificate; nothing where it showed none."""
    about = context.auth_context() or {}
    return [value.decode(errors="replace") for kind in KINDS for value in about.get(kind, ())]
