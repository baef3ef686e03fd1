"""GET `/`, `/page/…` and `/live`. The files answer everybody; the live view is for whom the metrics are for."""

import asyncio
import socket

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from gateway.generation import Generation
from gateway.http.connection import connection_of
from gateway.http.errors import error_object
from gateway.http.health import refuse_unless_metrics
from gateway.http.sse import HEADERS, data_line
from gateway.page.feed import LiveFeed
from gateway.page.files import PageFile
from tokenwire.errors import TokenwireError, let_go

LIVE_PATH = "/live"
TAKEN_WITHIN_S = 10.0
"""A viewer on whose way a picture finds no room for so long is let go: the room is for those who look."""
SEND_BUFFER_BYTES = 16 * 1024
"""What the system keeps for a viewer: by itself it would keep minutes of pictures that nobody reads."""


class LiveView(Response):
    """Pictures of what the tiers do, as server-sent events: until the caller leaves, may no more, or the gateway stops.

    What keeps it from beginning is raised, for the application to answer.
    """

    def __init__(self, generation: Generation, feed: LiveFeed) -> None:
        super().__init__()
        self._generation = generation
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write them."""
        transport = connection_of(scope).transport
        refuse_unless_metrics(self._generation)
        self._generation.refuse_when_draining()
        address, *_ = transport.get_extra_info("peername") or ("",)
        with self._feed.viewing(address) as view:
            if not transport.is_closing():
                transport.set_write_buffer_limits(high=0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            while not (transport.is_closing() or self._generation.draining):
                try:
                    picture = await self._feed.next_picture(view)
                    refuse_unless_metrics(self._generation)  # a key may have been taken away
                except TokenwireError as error:
                    let_go(error)
                    await _write(send, data_line({"error": error_object(error, "")}))
                    break
                if not picture:
                    break
                try:
                    async with asyncio.timeout(TAKEN_WITHIN_S):
                        await _write(send, f"data: {picture}\n\n")
                except TimeoutError:
                    transport.abort()
                    break
            if not transport.is_closing():
                transport.set_write_buffer_limits()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _write(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


def page_routes(generation: Generation, feed: LiveFeed, files: dict[str, PageFile]) -> APIRouter:
    """The routes."""
    router = APIRouter()

    def add(path: str, file: PageFile) -> None:
        async def page_file(request: Request) -> Response:
            return file.answer(request)

        router.add_api_route(path, page_file, methods=["GET", "HEAD"])

    for path, file in files.items():
        add(path, file)

    @router.get(LIVE_PATH)
    async def live() -> Response:
        return LiveView(generation, feed)

    return router
