"""Sends parts of requests to model tiers: at once where there is room, held back in order where there is none.

Whatever is held can still be re-ordered, goes to whichever model tier has room first, and is taken back at once. Where
there is room, a part is sent down in the turn of the event loop in which it came. Knows credits as a yes or no of each
replica; does not know the wire, nor what a part consists of.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from tokenizer_svc.held_queue import Held, HeldQueue, Holdable
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.router import Replica, Router, RoutingQuery
from tokenwire.errors import Overloaded, TokenwireError, Unavailable

SWEEP_S = 0.1
"""How often what is held is looked at while nothing is heard from the model tiers."""
RETRY_AFTER_S = 1.0


class Dispatchable(Holdable, Protocol):
    """What goes to one model tier in one Submit."""

    @property
    def query(self) -> RoutingQuery:
        """What of it decides where it goes."""

    def suits(self, replica: Replica) -> bool:
        """Whether this replica may have it now, room or not."""

    def go(self, replica: Replica) -> None:
        """Submit it there."""

    def turn_away(self, error: TokenwireError) -> None:
        """It is held no more and will not go down."""


class Dispatcher:
    """All model tiers' room, and everything that waits for some. Lives on the event loop."""

    def __init__(self, router: Router, metrics: TokenizerMetrics, *, max_held_requests: int, wait_s: float) -> None:
        """`wait_s`: how long a part waits while no model tier can have it at all."""
        self.closed = False
        self._router = router
        self._metrics = metrics
        self._wait_s = wait_s
        self._held: HeldQueue[Dispatchable] = HeldQueue(max_held_requests)
        self._since_s: dict[Dispatchable, float] = {}
        """When each began to be held."""
        self._stranded_s: dict[Dispatchable, float] = {}
        """Since when no model tier could have it."""
        self._demand: list[Held] | None = []
        """What is held, as told to the model tiers; None: it has changed."""
        self._timer: asyncio.TimerHandle | None = None
        self._looks_soon = False

    @property
    def num_held(self) -> int:
        """Sequences that are held back."""
        return self._held.num_requests

    @property
    def oldest_held_s(self) -> float:
        """For how long the one has been held that has been held longest; 0 where none is."""
        since_s = next(iter(self._since_s.values()), None)  # they are in the order in which they came
        return 0.0 if since_s is None else time.monotonic() - since_s

    def place(self, part: Dispatchable) -> None:
        """Send a part down, now or once there is room.

        Raises Unavailable when it has not begun and no model tier is there, or when this tier closes; Overloaded when
        too much is held already.
        """
        if self.closed:
            raise Unavailable(
                "the tokenizer tier is shutting down", reason="SHUTTING_DOWN", retry_after_s=RETRY_AFTER_S
            )
        ready = self._router.ready_replicas()
        if not ready and not part.begun:
            self._router.pick(part.query)  # which says why there is none
        if not self._held:
            among = _with_room(part, [replica for replica in ready if part.suits(replica)])
            if among:
                part.go(self._router.choose(part.query, among))
                return
        displaced = self._held.add(part)
        self._since_s[part] = time.monotonic()
        for other in displaced:
            self._left(other)
        self._changed()
        message = "this request was held until a model tier has room, and gave way to one of "
        message += "a higher priority or of another tenant"
        for other in displaced:
            other.turn_away(Overloaded(message, reason="HELD_QUEUE_FULL", retry_after_s=RETRY_AFTER_S))
        self.on_room()

    def forget(self, part: Dispatchable) -> None:
        """A part is wanted no more. One that is not held is ignored."""
        if self._held.discard(part):
            self._left(part)
            self._changed()
            if not self._looks_soon:
                self._looks_soon = True  # what it kept back may go; many may be forgotten at once
                asyncio.get_running_loop().call_soon(self._look)

    def on_room(self) -> None:
        """A model tier may have room, or be ready again: send down what it can have, in order.

        What comes first is not passed over for want of room: a replica that could have it takes nothing else before.
        """
        if not self._held:
            return
        open_to = self._router.ready_replicas()
        num_before = len(self._held)
        for part in self._held.in_order():
            if not open_to:
                break
            suited = [replica for replica in open_to if part.suits(replica)]
            among = _with_room(part, suited)
            if among:
                self._held.take(part)
                self._left(part)
                taken = self._router.choose(part.query, among)
                part.go(taken)
                if taken not in self._router.ready_replicas():  # that was its trial
                    open_to.remove(taken)
            else:
                open_to = [replica for replica in open_to if replica not in suited]
        if len(self._held) != num_before:
            self._changed()

    def demand(self) -> list[Held]:
        """What is held by priority and tenant."""
        if self._demand is None:
            self._demand = self._held.held()
        return self._demand

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is held is counted right, and timed."""
        self._held.check_integrity()
        held = set(self._held.entries())
        if held != set(self._since_s) or not held.issuperset(self._stranded_s):
            raise AssertionError("the times of what is held are not those of what is held")

    def on_lapse(self, num_requests: int) -> None:
        """A model tier's lease has lapsed that allowed so many requests more."""
        self._metrics.lapsed_credits.inc(num_requests)

    def close(self) -> None:
        """Turn everything away that is held, and what comes later."""
        self.closed = True
        message = "the tokenizer tier is shutting down and no model tier had room for this request"
        self._turn_away(self._held.entries(), Unavailable(message, reason="SHUTTING_DOWN", retry_after_s=RETRY_AFTER_S))
        if self._timer is not None:
            self._timer.cancel()

    def _changed(self) -> None:
        """What is held has changed: tell the model tiers, and look again by and by."""
        self._demand = None
        self._metrics.held.set(self._held.num_requests)
        for replica in self._router.replicas:
            replica.report_demand()
        if self._held and self._timer is None and not self.closed:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _look(self) -> None:
        self._looks_soon = False
        self.on_room()

    def _left(self, part: Dispatchable) -> None:
        """A part is held no more."""
        self._metrics.held_seconds.observe(time.monotonic() - self._since_s.pop(part))
        self._stranded_s.pop(part, None)

    def _sweep(self) -> None:
        """Credits lapse and replicas go without a word; nothing may be held for ever for want of either."""
        self._timer = None
        self.on_room()
        now_s, ready = time.monotonic(), self._router.ready_replicas()
        stranded: list[Dispatchable] = []
        for part in self._held.entries():
            if any(part.suits(replica) for replica in ready):
                self._stranded_s.pop(part, None)
            elif now_s - self._stranded_s.setdefault(part, now_s) >= self._wait_s:
                stranded.append(part)
        if stranded:
            problems = "; ".join(f"{replica.target}: {replica.problem()}" for replica in self._router.replicas)
            message = f"no model tier could take the request for {self._wait_s:g} s ({problems})"
            self._turn_away(stranded, Unavailable(message, reason="MODEL_TIER_DOWN", retry_after_s=RETRY_AFTER_S))
        if self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _turn_away(self, parts: Sequence[Dispatchable], error: TokenwireError) -> None:
        for part in parts:
            if self._held.discard(part):
                self._left(part)
                part.turn_away(error)
        self._changed()


def _with_room(part: Dispatchable, replicas: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica.has_room(part.num_requests, part.num_tokens)]
