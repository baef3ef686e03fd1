"""The two kinds of stream a call returns: iterate for events, or ask for the whole text. Know nothing of requests.

Closing a stream before its end cancels the request in every tier, and so does the end of the last reference to it.
"""

import asyncio
import threading
import weakref
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc

from tokenwire.client.events import Event, Output, OutputCollector
from tokenwire.client.messages import GenerationCall
from tokenwire.errors import Cancelled, Unavailable
from tokenwire.forks import grpc_is_lost, refuse_lost_grpc
from tokenwire.status import from_rpc_error


class StreamState:
    """What both streams share: events that wait to be taken, and what was collected."""

    def __init__(self, request_id: str, num_outputs: int) -> None:
        self.request_id = request_id
        """Under which every tier logs this request."""
        self._num_outputs = num_outputs
        self._waiting: deque[Event] = deque()
        self._collector = OutputCollector(num_outputs)

    def _next_event(self) -> Event:
        event = self._waiting.popleft()
        self._collector.add(event)
        return event

    def _check_complete(self) -> None:
        if self._collector.num_open > 0:
            raise Unavailable(
                f"{self.request_id}: the stream ended with {self._collector.num_open} outputs unfinished",
                reason="STREAM_CUT",
            )

    def _only_text(self) -> str:
        if self._num_outputs != 1:
            raise ValueError(f"text() is for one output, this request has {self._num_outputs}: use outputs()")
        output = self._collector.outputs()[0]
        if output.error is not None:
            raise output.error
        return output.text


class Stream(StreamState):
    """Events of one call, in order of arrival. An iterator and a context manager; errors are `tokenwire.errors`.

    Several threads may read it: each event goes to one of them.
    """

    def __init__(self, sent: GenerationCall, call: Any) -> None:
        super().__init__(sent.request_id, sent.num_outputs)
        self._events_of = sent.events_of
        self._call = call
        self._reading = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if not self._waiting:
            refuse_lost_grpc()  # before the lock, which may have been held when the process was forked
        with self._reading:
            while not self._waiting:
                try:
                    self._waiting.extend(self._events_of(next(self._call)))
                except StopIteration:
                    self._check_complete()
                    raise
                except grpc.RpcError as error:
                    raise from_rpc_error(error) from None
            return self._next_event()

    def text(self) -> str:
        """The whole text of the only output. Raises what cut it short: an error, the deadline, a cancellation."""
        self.outputs()
        return self._only_text()

    def outputs(self) -> list[Output]:
        """Every whole output, by prompt and choice; each says in `error` whether it was cut short."""
        for _ in self:
            pass
        return self._collector.outputs()

    def close(self) -> None:
        """Cancel what still runs. Harmless at the end."""
        if not grpc_is_lost():
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncStream(StreamState):
    """`Stream` for asyncio: `async for`, `async with`, `await stream.text()`."""

    def __init__(self, sent: GenerationCall, call: Any, loop: asyncio.AbstractEventLoop) -> None:
        """`loop`: on which the call runs."""
        super().__init__(sent.request_id, sent.num_outputs)
        self._events_of = sent.events_of
        self._call = call
        weakref.finalize(self, _cancel_soon, loop, call).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            refuse_lost_grpc()
            try:
                response = await self._call.read()
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise Cancelled(f"{self.request_id}: the stream was closed") from None
            if response is grpc.aio.EOF:
                self._check_complete()
                raise StopAsyncIteration
            self._waiting.extend(self._events_of(response))
        return self._next_event()

    async def text(self) -> str:
        """As `Stream.text`."""
        await self.outputs()
        return self._only_text()

    async def outputs(self) -> list[Output]:
        """As `Stream.outputs`."""
        async for _ in self:
            pass
        return self._collector.outputs()

    def close(self) -> None:
        """Cancel what still runs. Harmless at the end."""
        if not grpc_is_lost():
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _cancel_soon(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    """Nobody can read it any more. Called in any thread, at any time; harmless at the end."""
    if not grpc_is_lost():
        with suppress(RuntimeError):  # the loop is closed, and the call with it
            loop.call_soon_threadsafe(call.cancel)
