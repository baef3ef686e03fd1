"""The paths that generate, straight to their handlers; every other path goes to the application behind.

A framework's routing, dependencies and middlewares cost more per request than all that the gateway itself does with it,
and these paths use none of them. Errors are answered as the application answers them. Knows no API.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import PROMPT_FIELDS, MethodNotAllowed, bug_response, error_response
from tokenwire.errors import TokenwireError

Handler = Callable[[Request], Awaitable[Response]]
"""Answers a POST. What it raises is answered for it."""


class Front:
    """ASGI application."""

    def __init__(self, app: ASGIApp, handlers: Mapping[str, Handler]) -> None:
        """`handlers`: by path."""
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on. What is no error of the caller's is answered and raised again, for the server to log."""
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        prompt_field = PROMPT_FIELDS.get(scope["path"], "prompt")
        if request.method != "POST":
            refusal = MethodNotAllowed(f"{request.method} is not allowed at {scope['path']}: use POST")
            response: Response = error_response(refusal, prompt_field)
            response.headers["Allow"] = "POST"
        else:
            try:
                response = await handler(request)
            except TokenwireError as error:
                response = error_response(error, prompt_field)
            except Exception as error:
                await bug_response(request, error)(scope, receive, send)
                raise
        await response(scope, receive, send)
