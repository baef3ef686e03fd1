"""What whoever looks at the live view is sent: one picture of all tiers, made for all of them a few times a second.

While nobody looks nothing is made and nobody is asked. A viewer who does not keep up misses pictures and holds nobody
up. Asks the tokenizer tiers alone, who answer from what they know. Does not know HTTP.
"""

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(eq=False, slots=True)
class View:
    """Somebody who looks."""

    caller: str
    """Who views are shared out among."""
    displaced: bool = False
    """It has made way for a caller with fewer."""


class LiveFeed:
    """The pictures of one process. Close it."""

    def __init__(
        self, backends: Backends, recent: Recent, *, with_addresses: bool, interval_s: float = INTERVAL_S
    ) -> None:
        """`with_addresses`: tiers are named by their addresses."""
        self.num_made = 0
        """Pictures since the start."""
        self._views: list[View] = []
        """The oldest first."""
        self._backends = backends
        self._recent = recent
        self._with_addresses = with_addresses
        self._interval_s = interval_s
        self._picture = ""
        self._made = asyncio.Event()
        """Set, and replaced by a new one, with each picture."""
        self._maker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def num_viewers(self) -> int:
        """Those who look."""
        return len(self._views)

    async def close(self) -> None:
        """No more pictures."""
        self._closed = True
        if self._maker is not None:
            await cancel_and_wait(self._maker)
        self._publish("")

    @contextlib.contextmanager
    def viewing(self, caller: str) -> Iterator[View]:
        """Somebody looks while the block runs, or until the view is `displaced`.

        Of too many, the oldest of the caller with most makes way for one with fewer; raises Overloaded where none has.
        """
        if len(self._views) >= MAX_VIEWERS:
            self._make_room(caller)
        view = View(caller)
        self._views.append(view)
        if self._maker is None:
            self._maker = asyncio.get_running_loop().create_task(self._make())
        try:
            yield view
        finally:
            if not view.displaced:
                self._views.remove(view)
            if not self._views and self._maker is not None:
                self._maker.cancel()
                self._maker = None

    def _make_room(self, caller: str) -> None:
        views = Counter(view.caller for view in self._views)
        (most, num_most), *_ = views.most_common(1)
        if views[caller] + 1 >= num_most:
            message = f"the live view is open {MAX_VIEWERS} times, the most there may be; {views[caller]} are yours"
            raise Overloaded(message, reason="TOO_MANY_VIEWERS", retry_after_s=RETRY_AFTER_S)
        displaced = next(view for view in self._views if view.caller == most)
        displaced.displaced = True
        self._views.remove(displaced)

    async def next_picture(self, view: View) -> str:
        """The next one as JSON; empty when there will be none. Raises Overloaded when the view is displaced."""
        if not self._closed:
            await self._made.wait()
        if view.displaced:
            message = "this view has made way: too many are open, and most of them from this address"
            raise Overloaded(message, reason="TOO_MANY_VIEWERS", retry_after_s=RETRY_AFTER_S)
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
