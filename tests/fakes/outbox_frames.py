"""Frames of an outbox, taken without a session."""

import asyncio

from tokenwire.outbox import TextOutbox
from tokenwire.requests import FinishReason, Terminal, Usage

LENGTH = Terminal(FinishReason.LENGTH, usage=Usage(3, 0, 5))


def take(outbox: TextOutbox):
    """The next frame, which must be there already."""
    return asyncio.run(asyncio.wait_for(outbox.next_frame(), 1))


def rows(frame) -> list[tuple[int, str, int]]:
    return list(zip(frame.handles, frame.texts, frame.num_tokens, strict=True))


def is_silent(outbox: TextOutbox) -> bool:
    async def wait() -> bool:
        try:
            await asyncio.wait_for(outbox.next_frame(), 0.01)
        except TimeoutError:
            return True
        return False

    return asyncio.run(wait())
