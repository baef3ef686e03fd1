"""`AsyncSession` and `Session`: thousands of requests on one stream, with an end, a cancellation and credits each.

    with client.session() as session:
        running = [session.submit(prompt, max_tokens=32) for prompt in prompts]
        texts = [outputs.text() for outputs in running]

Keeps one stream open, moves to another when the server drains, and lets no more be open than both sides allow: `submit`
waits. A request that was on its way when its stream broke fails and is not sent again. What is on the stream is the
business of `session_core`. Both kinds are one
implementation: ordinary code talks to an event loop in a thread that all its sessions share.
"""

import time
import warnings
import weakref
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

from tokenwire.channels import aio_channel, told_to_move
from tokenwire.client.conversations import ChatOptions, chat_parts
from tokenwire.client.events import Message, Prompt
from tokenwire.client.loop_thread import LoopThread, loop_thread
from tokenwire.client.messages import text_request
from tokenwire.client.options import CallOptions
from tokenwire.client.session_core import SessionCore
from tokenwire.client.session_outputs import AsyncSessionOutputs, BlockingSessionOutputs
from tokenwire.session import ToldToMove
from tokenwire.tls import ClientTls
from tokenwire.v1 import gateway_pb2_grpc, tokenizer_pb2


class AsyncSession:
    """Many requests on one stream, for asyncio. Made by `AsyncClient.session`; use it in an `async with` block."""

    def __init__(self, open_call: Callable[[], Any], target: str, max_open: int, told_to_move: ToldToMove) -> None:
        self._core = SessionCore(open_call, target, max_open, told_to_move)

    async def submit(
        self, prompt: Prompt, *, credit: int | None = None, **options: Unpack[CallOptions]
    ) -> AsyncSessionOutputs:
        """Continue one prompt. Waits for room; raises InvalidRequest, and what keeps it from being sent.

        `credit`: most tokens of each output that are sent before they are read; reading grants more. 0: none before
        `grant`, or before the whole is asked for. None: no limit. Outputs that nobody holds any more are taken back.
        """
        return await self._submit(text_request(prompt, options), credit)

    async def chat(
        self, messages: str | Sequence[Message], *, credit: int | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncSessionOutputs:
        """Answer a conversation, or one message of a user, as `Client.chat` does; otherwise as `submit`."""
        return await self._submit(text_request(*chat_parts(messages, options)), credit)

    async def close(self) -> None:
        """Cancel what is open, and end the stream."""
        await self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _submit(self, made: tuple[tokenizer_pb2.TextRequest, int], credit: int | None) -> AsyncSessionOutputs:
        begun_s = time.monotonic()
        request, num_outputs = made
        outputs = AsyncSessionOutputs(request.context.request_id, num_outputs, _checked(credit))
        await self._core.submit(request, outputs, num_outputs, begun_s)
        return outputs


class Session:
    """Many requests on one stream, for ordinary code; may be shared by threads. Use it in a `with` block.

    It has a connection of its own, on an event loop that all sessions of the process share. A forked process cannot
    use it, nor open others: both raise FailedPrecondition there. One that is not closed gives its connection back with
    a ResourceWarning when nobody holds it any more, nor what was submitted on it.
    """

    def __init__(self, target: str, metadata: Sequence[tuple[str, str]], tls: ClientTls | None, max_open: int) -> None:
        self._thread = loop_thread()
        channel, self._core = self._thread.run(_open(target, metadata, tls, max_open))
        self._close = partial(_close, self._core, channel)
        self._dropped = weakref.finalize(self, _give_back, self._thread, self._close, target)
        self._dropped.atexit = False

    def submit(
        self, prompt: Prompt, *, credit: int | None = None, **options: Unpack[CallOptions]
    ) -> BlockingSessionOutputs:
        """As `AsyncSession.submit`."""
        return self._submit(text_request(prompt, options), credit)

    def chat(
        self, messages: str | Sequence[Message], *, credit: int | None = None, **options: Unpack[ChatOptions]
    ) -> BlockingSessionOutputs:
        """As `AsyncSession.chat`."""
        return self._submit(text_request(*chat_parts(messages, options)), credit)

    def close(self) -> None:
        """Cancel what is open, and end the stream; who waits in another thread is told. Harmless a second time.

        On the thread of the sessions' event loop, where a finalizer may run, it does not wait for the end.
        """
        self._dropped.detach()
        if self._thread.is_current:
            self._thread.begin(self._close())
        elif self._thread.runs_here:
            self._thread.run(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _submit(self, made: tuple[tokenizer_pb2.TextRequest, int], credit: int | None) -> BlockingSessionOutputs:
        begun_s = time.monotonic()
        request, num_outputs = made
        outputs = BlockingSessionOutputs(request.context.request_id, num_outputs, _checked(credit), self._thread, self)
        self._thread.run(self._core.submit(request, outputs, num_outputs, begun_s))
        return outputs


async def _close(core: SessionCore, channel: Any) -> None:
    await core.close()
    await channel.close()


def _give_back(thread: LoopThread, close: Callable[[], Coroutine[Any, Any, None]], target: str) -> None:
    """Nobody can use the session or read what was submitted on it. Called in any thread, at any time."""
    if thread.runs_here:
        thread.begin(close())
        warnings.warn(f"a session with {target} was not closed", ResourceWarning, stacklevel=2)


async def _open(
    target: str, metadata: Sequence[tuple[str, str]], tls: ClientTls | None, max_open: int
) -> tuple[Any, SessionCore]:
    channel = aio_channel(target, tls)
    stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
    return channel, SessionCore(
        lambda: stub.Session(metadata=tuple(metadata)), target, max_open, partial(told_to_move, channel)
    )


def _checked(credit: int | None) -> int | None:
    if credit is not None and not (isinstance(credit, int) and 0 <= credit < 2**32):
        raise ValueError(f"credit {credit!r} is not allowed: 0 or more tokens, or None for no limit")
    return credit
