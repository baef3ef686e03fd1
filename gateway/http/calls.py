"""One HTTP request that generates: who asks, its text stream, and noticing that the client has gone."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from fastapi import Request

from gateway.generation import Generation, arriving
from gateway.http.connection import Connection, connection_of
from gateway.http.fields import GenerationFields
from gateway.metrics import RequestRecord
from gateway.streams import Event, Output, TextStream
from gateway.text_requests import TextRequest
from tokenwire.errors import Cancelled, TokenwireError
from tokenwire.requests import RequestContext


class Asked(Protocol):
    """The fields of a body that say who asks."""

    priority: int | None
    tenant: str | None
    timeout: float | None
    """Seconds."""


def context_of(request: Request, body: Asked) -> RequestContext:
    """Of a request whose body has just come. Raises InvalidRequest."""
    return arriving(
        request.state.request_id,
        priority=body.priority,
        tenant=body.tenant,
        timeout_s=body.timeout,
        traceparent=_only(request.headers.getlist("traceparent")),
    )


def _only(values: list[str]) -> str:
    """Of a header; empty where it stands several times: none of them counts."""
    return values[0].strip(" \t") if len(values) == 1 else ""


class HttpCall:
    """From receipt to the last byte. Use as a context manager, or `keep` it for the response and close it there."""

    def __init__(self, generation: Generation, request: Request, api: str) -> None:
        self.request_id: str = request.state.request_id
        self.record: RequestRecord = generation.record(api)
        self.record.request_id = self.request_id
        self.connection: Connection = connection_of(request.scope)
        self.keep_alive_s: float | None = generation.settings.stream_keep_alive_s or None
        """How long a streamed answer may be silent; None: as long as it takes."""
        self.gone = False
        """The client went away."""
        self._generation = generation
        self._request = request
        self._stream: TextStream | None = None
        self._kept = False

    def __enter__(self) -> "HttpCall":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None or not self._kept:
            self.close(error)

    def keep(self) -> None:
        """The response goes on reading: it closes."""
        self._kept = True

    def open(self, body: GenerationFields, requests: Sequence[TextRequest], model: str) -> RequestContext:
        """Send the prompts down; for whom, and until when. Raises as `Generation.open` does."""
        context = context_of(self._request, body)
        self.record.asks_for(model)
        caller = self._generation.caller(self.record, context)
        self._stream = self._generation.open(self.record, caller, requests)
        self.connection.watch(self._on_gone)
        return caller.context

    async def next_events(self) -> list[Event]:
        """As `TextStream.next_events`. Raises Cancelled when the client has gone."""
        assert self._stream is not None, "open comes first"
        events = await self._stream.next_events()
        if not events and self.gone:
            raise Cancelled("the client went away")
        return events

    def take_events(self) -> list[Event]:
        """As `TextStream.take_events`. Raises Cancelled when the client has gone."""
        assert self._stream is not None, "open comes first"
        if self.gone:
            raise Cancelled("the client went away")
        return self._stream.take_events()

    @property
    def has_more(self) -> bool:
        """Whether there is something to take now."""
        return self._stream is not None and self._stream.has_more

    @property
    def over(self) -> bool:
        """Whether every event has been taken."""
        return self._stream is not None and self._stream.over

    def listen(self, listener: Callable[[], None], on_paused: Callable[[], None]) -> None:
        """From now on call this when something has come, when the client can take more, and when it has gone.

        `on_paused`: what to call when the client does not keep up.
        """
        assert self._stream is not None, "open comes first"
        self._stream.listen(listener)
        self.connection.on_writable = listener
        self.connection.on_paused = on_paused

    @property
    def outputs(self) -> list[Output]:
        """Those of all prompts."""
        return [] if self._stream is None else [output for choices in self._stream.outputs for output in choices]

    def close(self, error: BaseException | None = None) -> None:
        """Take back what still runs below, count and log. Later calls change nothing."""
        self.connection.release()
        if self._stream is not None:
            self._stream.listen(None)
            self._stream.close()
        if error is not None:
            self.record.failed(error)
        self.record.close()

    def failed(self, error: TokenwireError) -> None:
        """The answer ended with this error after its status had been sent."""
        self.record.failed(error)

    def _on_gone(self) -> None:
        self.gone = True
        if self._stream is not None:
            self._stream.close()
