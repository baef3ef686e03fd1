"""A handler whose answers nobody takes any more has ended when its call has, and not when garbage is looked for."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gateway.http.connection import EXTENSION
from gateway.identity.grpc_gate import GrpcGate
from gateway.settings import GatewaySettings
from gateway.web.calls import WebCalls
from gateway.web.methods import WebMethods
from tokenwire.interceptor import TypedErrors
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc

PATH = "/tokenwire.v1.GenerationService/Generate"


class Identifier:
    """Lets everybody in."""

    asks = False

    async def identify(self, *_: Any) -> Any:
        return None


class Endless(gateway_pb2_grpc.GenerationServiceServicer):
    """Answers for ever."""

    closed = False

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        try:
            while True:
                yield gateway_pb2.GenerateResponse()
        finally:
            await asyncio.sleep(0)
            self.closed = True


def methods(servicer: Endless, *interceptors: grpc.aio.ServerInterceptor) -> WebMethods:
    found = WebMethods(interceptors)
    descriptor = gateway_pb2.DESCRIPTOR.services_by_name["GenerationService"]
    found.add(gateway_pb2_grpc.add_GenerationServiceServicer_to_server, servicer, descriptor)
    return found


@pytest.mark.parametrize(
    "interceptors",
    [(), (TypedErrors(),), (GrpcGate(Identifier(), open_health=False),)],  # type: ignore[arg-type]
    ids=["none", "typed errors", "identity"],
)
def test_a_handler_ends_with_what_stands_around_it(interceptors: tuple[grpc.aio.ServerInterceptor, ...]) -> None:
    async def read() -> gateway_pb2.GenerateRequest:
        return gateway_pb2.GenerateRequest()

    async def main() -> None:
        servicer = Endless()
        offered = methods(servicer, *interceptors)
        method = offered.find(PATH)
        assert method is not None
        handler = await offered.handler(method, ())
        answers = handler.unary_stream(read, SimpleNamespace(invocation_metadata=lambda: ()))
        await anext(answers)
        await answers.aclose()
        assert servicer.closed

    asyncio.run(main())


def test_a_handler_ends_with_a_call_that_cannot_be_answered() -> None:
    async def main() -> None:
        servicer = Endless()
        calls = WebCalls(_nowhere, methods(servicer), GatewaySettings())
        connection = SimpleNamespace(
            certificate={}, watch=lambda on_gone: None, release=lambda: None, see_the_end=lambda: None
        )
        scope = {
            "type": "http", "method": "POST", "path": PATH, "query_string": b"", "extensions": {EXTENSION: connection},
            "headers": [(b"content-type", b"application/grpc-web+proto")],
        }  # fmt: skip
        with pytest.raises(BrokenPipeError):
            await calls(scope, _body, _broken)
        assert servicer.closed
        calls.close()

    asyncio.run(main())


async def _nowhere(*_: Any) -> None:
    raise AssertionError("the path is offered")


async def _body() -> dict[str, Any]:
    return {"type": "http.request", "body": bytes(5), "more_body": False}


async def _broken(message: Any) -> None:
    raise BrokenPipeError
