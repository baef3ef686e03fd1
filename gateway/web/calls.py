"""Calls of browsers, answered on the HTTP port by the handlers of the gRPC port, behind the same interceptors.

One request is one call: unary, or with a stream of answers. Its body is read, and its message made, once the
interceptors have let it in: who is not known costs neither. Calls on which the client streams are refused: browsers
cannot, and on HTTP/1.1 nobody can while answers come. A client that goes away cancels its handler, as on gRPC; time
that is up ends it. Identity, limits and what errors say are the interceptors' and handlers' business.
"""

import asyncio
import inspect
import time
from contextlib import aclosing
from typing import Any

import grpc
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.body import read_bytes
from gateway.http.connection import Connection, connection_of
from gateway.http.errors import MethodNotAllowed, UnsupportedMediaType, error_response
from gateway.settings import GatewaySettings
from gateway.web.codecs import Binary, Json
from gateway.web.connect import ConnectStream, ConnectUnary
from gateway.web.context import WebContext
from gateway.web.forms import Form
from gateway.web.grpc_web import GrpcWeb
from gateway.web.methods import Method, WebMethods
from gateway.web.status import CallStatus, as_on_grpc
from tokenwire.errors import DeadlineExceeded, TokenwireError, Unsupported

LONGEST_S = 10.0 * 365 * 24 * 3600
"""More time than this is no limit."""


class WebCalls:
    """ASGI application: the paths of services that are offered; every other path goes to the application behind."""

    def __init__(self, app: ASGIApp, methods: WebMethods, settings: GatewaySettings) -> None:
        self._app = app
        self._methods = methods
        self._settings = settings
        self._json = Json()
        self._forms = _forms(self._json)

    def close(self) -> None:
        """No calls come any more."""
        self._json.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http" or not self._methods.has_service(scope["path"]):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        form, method = self._forms.get(content_type), self._methods.find(scope["path"])
        if request.method != "POST":
            refusal = error_response(MethodNotAllowed(f"{request.method} is not allowed here: use POST"))
            refusal.headers["Allow"] = "POST"
            await refusal(scope, receive, send)
        elif form is None or (method is not None and form.streams not in (None, method.streams_responses)):
            allowed = ", ".join(
                name
                for name, each in self._forms.items()
                if method is None or each.streams in (None, method.streams_responses)
            )
            message = f"Content-Type {content_type!r:.80} is not allowed here: send one of {allowed}"
            refusal = error_response(UnsupportedMediaType(message))
            refusal.headers["Accept-Post"] = allowed
            await refusal(scope, receive, send)
        else:
            await self._call(form, method, request, send)

    async def _call(self, form: Form, method: Method | None, request: Request, send: Send) -> None:
        """One call to its end."""
        began_s = time.monotonic()
        connection = connection_of(request.scope)
        answer = form.answer(send, connection)
        try:
            if method is None:
                raise Unsupported(f"there is no method {request.url.path}", reason="NO_SUCH_METHOD")
            if method.streams_requests:
                message = f"{method.path} takes a stream of the client's, which needs gRPC over HTTP/2"
                raise Unsupported(f"{message}: call it on the gRPC port", reason="CLIENT_STREAM")
            timeout_s = form.timeout_s(request.headers)
        except TokenwireError as error:
            await answer.end(CallStatus.of(error))
            return
        deadline_s = None if timeout_s is None or timeout_s > LONGEST_S else began_s + timeout_s
        metadata = tuple((key, value) for key, value in request.headers.items())
        context = WebContext(metadata, connection.certificate, deadline_s, form.codec, answer)
        async with _Leaving(connection):
            try:
                async with asyncio.timeout(context.time_remaining()):
                    await self._run(form, method, request, connection, context)
            except TimeoutError:
                context.status = CallStatus.of(DeadlineExceeded(f"{method.path}: the time given ran out"))
            await answer.end(context.status)

    async def _run(
        self, form: Form, method: Method, request: Request, connection: Connection, context: WebContext
    ) -> None:
        """The handler to its end, and what it ends with in `context.status`."""

        async def message() -> Any:
            try:
                body = await read_bytes(request, self._settings.max_body_bytes, self._settings.body_timeout_s)
            except TokenwireError as error:
                raise as_on_grpc(error) from None
            connection.see_the_end()
            return await form.codec.read(form.message_of(body), method.request_class)

        handler = await self._methods.handler(method, context.invocation_metadata())
        behaviour = handler.unary_stream if method.streams_responses else handler.unary_unary
        try:
            if inspect.isasyncgenfunction(behaviour):
                async with aclosing(behaviour(message, context)) as responses:
                    async for response in responses:
                        await context.write(response)
                return
            response = await behaviour(message, context)
            if not method.streams_responses:
                await context.write(response)
        except grpc.aio.AbortError:
            assert context.status is not None, "abort leaves it there"


class _Leaving:
    """While it is entered, a client that goes away cancels this task's work, which then ends quietly."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._task = asyncio.current_task()
        self._gone = False

    async def __aenter__(self) -> None:
        self._connection.watch(self._on_gone)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._connection.release()
        assert self._task is not None
        if not self._gone:
            return False
        left = self._task.uncancel()
        return kind is asyncio.CancelledError and not left

    def _on_gone(self) -> None:
        if not self._gone and self._task is not None:
            self._gone = True
            self._task.cancel()


def _forms(json: Json) -> dict[str, Form]:
    """By content type."""
    binary = Binary()
    return {
        "application/json": ConnectUnary(json, b"application/json"),
        "application/proto": ConnectUnary(binary, b"application/proto"),
        "application/connect+json": ConnectStream(json, b"application/connect+json"),
        "application/connect+proto": ConnectStream(binary, b"application/connect+proto"),
        "application/grpc-web": GrpcWeb(binary, b"application/grpc-web+proto"),
        "application/grpc-web+proto": GrpcWeb(binary, b"application/grpc-web+proto"),
        "application/grpc-web+json": GrpcWeb(json, b"application/grpc-web+json"),
        "application/grpc-web-text": GrpcWeb(binary, b"application/grpc-web-text+proto", as_text=True),
        "application/grpc-web-text+proto": GrpcWeb(binary, b"application/grpc-web-text+proto", as_text=True),
    }
