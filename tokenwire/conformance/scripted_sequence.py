"""What the scripted server knows of each sequence, and when it begins to answer. Does not know streams."""

import asyncio
from dataclasses import dataclass, field

from tokenwire.v1 import tokenizer_pb2

FAR_AWAY = 2**31
QUIET_S = 0.5
"""A client that has sent no Submit for so long keeps as much open as it means to."""


@dataclass
class Sequence:
    """One choice of a Submit."""

    handle: int
    request: tokenizer_pb2.TextRequest
    initial_credit: int | None
    credit: int = FAR_AWAY
    granted: list[int] = field(default_factory=list)
    """What each Credit added."""
    num_sent: int = 0
    cancelled: bool = False
    finished: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Waves:
    """Answers nothing while Submits come, so that all that a client keeps open at once is open at once."""

    def __init__(self, number: int) -> None:
        """After so many waves everything is answered as it comes; 0: from the beginning."""
        self._left = number
        self._ended = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None

    def submitted(self) -> None:
        """A Submit came."""
        if self._quiet is not None:
            self._quiet.cancel()
        if self._left:
            self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._end)

    async def turn(self) -> None:
        """Wait for the end of the wave."""
        if self._left:
            await self._ended.wait()

    def _end(self) -> None:
        self._left -= 1
        self._ended.set()
        self._ended = asyncio.Event()
