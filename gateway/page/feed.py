"""What whoever looks at the live view is sent: one picture of all tiers, made for all of them a few times a second.

While nobody looks nothing is made and nobody is asked. A viewer who does not keep up misses pictures and holds nobody
up. Asks the tokenizer tiers alone, who answer from what they know. Does not know HTTP.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator

import grpc

from gateway.backend import Backend
from gateway.backends import Backends
from gateway.page.recent import Recent
from gateway.page.snapshot import TierLoad, snapshot
from tokenwire.errors import Overloaded
from tokenwire.tasks import cancel_and_wait

log = logging.getLogger(__name__)

INTERVAL_S = 0.25
ASK_TIMEOUT_S = 1.0
"""A tokenizer tier that has not answered by then is shown without its load."""
MAX_VIEWERS = 32
RETRY_AFTER_S = 5.0


class LiveFeed:
    """The pictures of one process. Close it."""

    def __init__(
        self, backends: Backends, recent: Recent, *, with_addresses: bool, interval_s: float = INTERVAL_S
    ) -> None:
        """`with_addresses`: tiers are named by their addresses."""
        self.num_viewers = 0
        self.num_made = 0
        """Pictures since the start."""
        self._backends = backends
        self._recent = recent
        self._with_addresses = with_addresses
        self._interval_s = interval_s
        self._picture = ""
        self._made = asyncio.Event()
        """Set, and replaced by a new one, with each picture."""
        self._maker: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """No more pictures."""
        self._closed = True
        if self._maker is not None:
            await cancel_and_wait(self._maker)
        self._publish("")

    @contextlib.contextmanager
    def viewing(self) -> Iterator[None]:
        """Somebody looks while the block runs. Raises Overloaded where too many do already."""
        if self.num_viewers >= MAX_VIEWERS:
            message = f"{MAX_VIEWERS} callers look at the live view already, the most there may be"
            raise Overloaded(message, reason="TOO_MANY_VIEWERS", retry_after_s=RETRY_AFTER_S)
        self.num_viewers += 1
        if self._maker is None:
            self._maker = asyncio.get_running_loop().create_task(self._make())
        try:
            yield
        finally:
            self.num_viewers -= 1
            if not self.num_viewers and self._maker is not None:
                self._maker.cancel()
                self._maker = None

    async def next_picture(self) -> str:
        """The next one as JSON, for who is `viewing`; empty when there will be none."""
        if not self._closed:
            await self._made.wait()
        return self._picture

    async def _make(self) -> None:
        """Until it is cancelled. What goes wrong ends the views, which may be opened again."""
        try:
            while True:
                loads = await self._ask()
                picture = snapshot(self._backends, self._recent, loads, with_addresses=self._with_addresses)
                self._publish(json.dumps(picture, separators=(",", ":")))
                await asyncio.sleep(self._interval_s)
        except Exception:
            log.exception("the live view could not be made")
            self._maker = None
            self._publish("")

    def _publish(self, picture: str) -> None:
        self._picture = picture
        self.num_made += 1
        made, self._made = self._made, asyncio.Event()
        made.set()

    async def _ask(self) -> list[TierLoad]:
        """What each process of the tokenizer tiers says; None where it cannot be asked."""
        processes: dict[tuple[str, int], Backend] = {each.process: each for each in self._backends.tiers}
        return list(await asyncio.gather(*map(self._ask_one, processes.values())))

    async def _ask_one(self, backend: Backend) -> TierLoad:
        if backend.connected:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return backend, await backend.tier_load(ASK_TIMEOUT_S)
        return backend, None
