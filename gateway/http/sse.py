"""Server-sent events written straight into the connection, from within the frame that brought their text.

Head and end go through ASGI, and what lies between goes around it: no task switch per event. A client that does not
keep up is written to again when its buffer has drained, with what has come meanwhile as one event.

An answer on which nothing comes for a while has comments written into it, so that nobody on the way gives it up. One
that has not begun by then begins with a comment, and an error that comes later no longer has a status of its own.

Does not know what the events say; a `Chunks` writes them.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.http.calls import HttpCall
from gateway.http.errors import error_object
from gateway.http.text_events import TextEvents
from gateway.streams import Event
from tokenwire.errors import Cancelled, TokenwireError, let_go

STREAM_HEADERS = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]
"""Of every answer that is streamed: nobody on the way keeps it back."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), *STREAM_HEADERS]
DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"

json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""A value as JSON; for a text alone this is one call into C."""


class Chunks(Protocol):
    """Writes events as server-sent events."""

    def render(self, events: Sequence[Event]) -> tuple[str, TokenwireError | None]:
        """What these events add to the answer, and the error that ends it."""

    def around_text(self, prompt: int, choice: int) -> tuple[str, str] | None:
        """What stands around a text, as JSON, in an event of that alone; None before the output has begun."""

    def end(self) -> str:
        """What stands behind the last event."""


def data_line(value: object) -> str:
    """One server-sent event."""
    return f"data: {json_text(value)}\n\n"


async def event_stream(call: HttpCall, chunks: Chunks, prompt_field: str) -> "EventStream":
    """Wait for the first events, so that an error before any text is raised and has a status of its own."""
    text, error = KEEP_ALIVE, None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(call.keep_alive_s):
            events = await call.next_events()
        text, error = chunks.render(events)
    if error is not None and not text:
        raise error
    call.keep()
    return EventStream(call, chunks, text, error, prompt_field)


class EventStream(Response):
    """The response. Its beginning has been rendered already. Made by `event_stream`."""

    def __init__(
        self, call: HttpCall, chunks: Chunks, first: str, error: TokenwireError | None, prompt_field: str
    ) -> None:
        super().__init__()
        self._call = call
        self._chunks = chunks
        self._first = first
        self._error = error
        self._prompt_field = prompt_field
        self._rest = ""
        """The last events' text."""
        self._quiet = False
        """Nothing was written since the last look."""
        self._direct: list[TextEvents] = []
        """What writes past this, and tells for itself whether it has."""
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the end. The call is closed in any case."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": self._first.encode(), "more_body": True})
            if self._error is None:
                await self._until_over()
            await send({"type": "http.response.body", "body": self._last().encode(), "more_body": False})
        except Cancelled as error:  # the client has gone: nobody is there to be told
            let_go(error)
            self._call.close(error)
        except BaseException as error:
            self._call.close(error)
            raise
        else:
            self._call.close()

    async def _until_over(self) -> None:
        """Write all but the last piece. Raises Cancelled when the client has gone."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call, connection = self._call, self._call.connection

        def fail(error: Exception) -> None:
            self._stop_direct()
            if not over.done():
                over.set_exception(error)

        def advance() -> None:
            """Write what has come, where the client can take it; called from within whatever brought it."""
            if over.done():
                return
            try:
                while (connection.writable or call.gone) and self._write():
                    pass
                if self._error is not None or call.over:
                    self._stop_direct()
                    over.set_result(None)
                elif connection.writable:
                    self._go_direct(fail)
            except Exception as error:  # this answer's alone: what brought the news has others to serve
                fail(error)

        call.listen(advance, on_paused=self._stop_direct)
        advance()
        if call.keep_alive_s is not None:
            self._keep_alive(call.keep_alive_s)
        try:
            await over
        finally:
            self._stop_direct()
            if self._timer is not None:
                self._timer.cancel()

    def _go_direct(self, on_failure: Callable[[Exception], None]) -> None:
        """From now on text alone is written where it comes, of every output that has begun and has nothing waiting."""
        if not (self._call.record.started and self._call.connection.in_chunks):
            return
        for output in self._call.outputs:
            if output.direct is None and output.begun and not output.waits:
                around = self._chunks.around_text(output.prompt, output.choice)
                if around is not None:
                    events = TextEvents(self._call.connection, *around, on_failure)
                    output.direct, output.burst = events.write, events.write_later
                    self._direct.append(events)

    def _stop_direct(self) -> None:
        """Text waits in its output again."""
        if self._direct:
            for output in self._call.outputs:
                output.direct = output.burst = None
            self._direct.clear()
            self._quiet = False

    def _keep_alive(self, interval_s: float) -> None:
        """Write a comment where nothing was written since the last look, and look again."""
        quiet = self._quiet and all(events.quiet for events in self._direct)
        if quiet and self._call.connection.writable and not self._call.connection.transport.is_closing():
            self._call.connection.write_chunk(KEEP_ALIVE.encode())
        self._quiet = True
        for events in self._direct:
            events.quiet = True
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._keep_alive, interval_s)

    def _write(self) -> bool:
        """Write what has come; whether there is more already."""
        call = self._call
        events = call.take_events()
        if not events:
            return False
        text, self._error = self._chunks.render(events)
        if self._error is not None or call.over:
            self._rest = text  # goes with the end, in one write
            return False
        if text:
            self._quiet = False
            call.connection.write_chunk(text.encode())
        return call.has_more

    def _last(self) -> str:
        if self._error is None:
            return self._rest + self._chunks.end()
        self._call.failed(self._error)
        return self._rest + data_line({"error": error_object(self._error, self._prompt_field)})
