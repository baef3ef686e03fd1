"""A request id on every HTTP request and answer: the caller's `x-request-id`, or one drawn here."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.errors import error_response
from tokenwire.errors import TokenwireError
from tokenwire.requests import RequestContext, new_request_id
from tokenwire.sampling import refuse

HEADER = b"x-request-id"


class RequestIds:
    """ASGI middleware. Sets `request.state.request_id`; refuses an id that is not allowed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with an id, and put it on the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == HEADER), "")
        answer = self._app
        try:
            if given:
                refuse(RequestContext(given).violations())
        except TokenwireError as error:
            answer, given = error_response(error), ""
        request_id = given or new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        header = (HEADER, request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await answer(scope, receive, send_with_id)
