"""The tiers as a group of processes: started together, watched, drained from the edge inwards, never left behind.

Each tier is the leader of a process session of its own, so that a terminal's Ctrl-C reaches only `tokenwire up`, and
so that whatever a tier starts can be ended with it. How a tier follows when `tokenwire up` itself is killed is
`tier.py`'s business. Knows nothing of what tiers do.
"""

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tokenwire.cli.log_lines import Lines
from tokenwire.cli.log_stream import cut_line
from tokenwire.cli.tiers import Tier
from tokenwire.errors import Unavailable
from tokenwire.health import wait_serving
from tokenwire.tasks import cancel_and_wait

KILL_AFTER_S = 5.0
"""How much longer than its drain limit a tier may take before it is killed."""
NUM_LAST_LINES = 20
MAX_LINE_BYTES = 2**16

ShowLine = Callable[[str, str], None]
"""Told a tier's name and one line of its output."""


class TierProcess:
    """One running tier."""

    def __init__(self, tier: Tier, show: ShowLine, drain_timeout_s: float) -> None:
        self.tier = tier
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._show = show
        self._grace_s = drain_timeout_s + KILL_AFTER_S
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it. Returns at once."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tokenwire.cli.tier", str(self._grace_s), self.tier.module, *self.tier.arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**dict(self.tier.environ), **os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        self._output = asyncio.create_task(self._read_output())

    async def died(self) -> Unavailable:
        """Wait until it ends; returns what to tell, its last lines included."""
        assert self._process is not None and self._output is not None
        code = await self._process.wait()
        await asyncio.wait({self._output}, timeout=1.0)  # a grandchild may hold the pipe open
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        said = "".join(f"\n  {line}" for line in self.last_lines) or "\n  (nothing)"
        return Unavailable(f"the {self.tier.name} tier {how}. It said last:{said}", reason="TIER_DIED")

    async def stop(self) -> bool:
        """Let it drain within its limit, then kill it and what it started. Returns whether it ended by itself."""
        if self._process is None:
            return True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._grace_s):
                await self._process.wait()
            in_time = True
        except TimeoutError:
            in_time = False
        await self.kill()
        return in_time

    async def kill(self) -> None:
        """End it and its group at once, and wait until it is gone."""
        if self._process is None or self._output is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the whole group is gone already
        await self._process.wait()
        await self._output

    async def _read_output(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        lines = Lines(MAX_LINE_BYTES)
        while chunk := await self._process.stdout.read(MAX_LINE_BYTES):
            for line in lines.add(chunk):
                self._line(*line)
        for line in lines.end():
            self._line(*line)

    def _line(self, line: bytes, num_dropped: int) -> None:
        text = line.decode(errors="replace").rstrip()
        if num_dropped:
            text = cut_line(self.tier.name, text, num_dropped)
        self.last_lines.append(text)
        self._show(self.tier.name, text)


class TierGroup:
    """All tiers. `async with` starts them and, however the block ends, leaves none behind."""

    def __init__(self, tiers: Sequence[Tier], show: ShowLine, drain_timeout_s: float) -> None:
        self.processes = [TierProcess(tier, show, drain_timeout_s) for tier in tiers]
        self._watches: list[asyncio.Task[Unavailable]] = []

    async def __aenter__(self) -> Self:
        try:
            for process in self.processes:
                await process.start()
        except BaseException:
            await self.kill()
            raise
        self._watches = [asyncio.create_task(process.died()) for process in self.processes]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.cancel()
        await self.kill()

    async def wait_ready(self, on_ready: Callable[[Tier, float], None]) -> None:
        """Return when every tier serves, telling each one's seconds. Raises Unavailable when one ends instead."""
        began = time.monotonic()

        async def ready(tier: Tier) -> None:
            await wait_serving(tier.target, tls=tier.tls)
            on_ready(tier, time.monotonic() - began)

        async def all_ready() -> None:
            await asyncio.gather(*(ready(process.tier) for process in self.processes))

        waiting = asyncio.create_task(all_ready())
        try:
            await asyncio.wait([waiting, *self._watches], return_when=asyncio.FIRST_COMPLETED)
            self.raise_if_died()
            waiting.result()
        finally:
            await cancel_and_wait(waiting)

    async def wait_died(self) -> None:
        """Wait until a tier ends, and raise Unavailable with what it said last."""
        await asyncio.wait(self._watches, return_when=asyncio.FIRST_COMPLETED)
        self.raise_if_died()

    def raise_if_died(self) -> None:
        """Raise Unavailable when a tier has ended."""
        for watch in self._watches:
            if watch.done():
                raise watch.result()

    async def drain(self, on_stopped: Callable[[Tier, bool], None]) -> None:
        """Stop the tiers one after the other, each with its own time to finish what runs; tells each one's end."""
        for watch in self._watches:
            watch.cancel()
        for process in self.processes:
            on_stopped(process.tier, await process.stop())

    async def kill(self) -> None:
        """End everything at once."""
        for process in self.processes:
            await process.kill()
