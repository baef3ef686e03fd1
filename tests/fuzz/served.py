"""One Session, served as gRPC would serve it while its peer stays, and what must hold of the frames that come down."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from tokenwire.errors import TokenwireError

ENDS_WITHIN_S = 5.0
STAYS_S = 0.05
"""How long a session may still wait for credit or time before its peer leaves."""


class Served:
    """The frames of a peer, and the context that gRPC would give."""

    def __init__(self, frames: list[Any]) -> None:
        self._frames = frames
        self._finished: set[int] = set()
        self._written = asyncio.Event()

    async def by(self, servicer: Callable[[AsyncIterator[Any], Any], Any]) -> None:
        """Serve it; the peer stays as long as something comes. AssertionError where a promise is broken."""
        serving = asyncio.ensure_future(servicer(self._up(), self))
        try:
            while not serving.done():
                self._written.clear()
                waiting = asyncio.ensure_future(self._written.wait())
                await asyncio.wait({serving, waiting}, timeout=STAYS_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not self._written.is_set():
                    break
        finally:
            serving.cancel()
            async with asyncio.timeout(ENDS_WITHIN_S):
                with suppress(asyncio.CancelledError, TokenwireError):
                    await serving

    async def _up(self) -> AsyncIterator[Any]:
        for frame in self._frames:
            yield frame
            await asyncio.sleep(0)

    async def write(self, frame: Any) -> None:
        """A frame down."""
        assert frame.IsInitialized() and self._finished.isdisjoint(frame.handles), "rows after the end"
        for finish in frame.finishes:
            assert finish.handle not in self._finished, "a second end"
            self._finished.add(finish.handle)
        if frame.handles or frame.finishes:
            self._written.set()
        await asyncio.sleep(0)
