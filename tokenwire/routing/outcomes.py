"""How one replica's requests end, told to its breaker: what counts as a failure, and what is too old to count.

A frame counts once, whatever the number of requests that end in it: one failed step can end them all. While the breaker
is not closed, only what was submitted since it opened counts. Does not know the wire.
"""

import logging
from collections.abc import Callable, Collection, Sequence

from tokenwire.errors import Internal, MessageTooLarge, TokenwireError, Unavailable
from tokenwire.logs import fields
from tokenwire.requests import FinishReason, Terminal
from tokenwire.routing.breaker import Breaker, BreakerState

log = logging.getLogger(__name__)

ENDED_WELL = {FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH}
GOODBYES = {"SHUTTING_DOWN", "DRAINING"}
"""Reasons with which a tier that is about to stop sends a request elsewhere, which is no failure."""


def is_failure(error: TokenwireError | None) -> bool:
    """Whether a request that ended so says something bad of its tier."""
    return isinstance(error, Unavailable | Internal) and error.reason not in GOODBYES


class Outcomes:
    """One replica's. `current` in its calls: whether the stream is the last one that was opened."""

    def __init__(self, target: str, breaker: Breaker, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the breaker's state has changed."""
        self._target = target
        self._breaker = breaker
        self._on_change = on_change
        self._first_since_open: int | None = None
        """The first handle on the current stream that was submitted since the breaker opened."""

    def on_stream(self) -> None:
        """A new stream was opened."""
        self._first_since_open = None

    def on_submit(self, handle: int) -> None:
        """A request goes down on the current stream."""
        if self._first_since_open is None:
            self._first_since_open = handle
        self._tell(self._breaker.on_submit)

    def on_tokens(self, current: bool, handles: Collection[int]) -> None:
        """Tokens came. Cheap while the breaker is closed."""
        if self._breaker.state is not BreakerState.CLOSED and self._counts(current, handles):
            self._tell(self._breaker.on_progress)

    def on_finishes(self, current: bool, ended: Sequence[tuple[int, Terminal]]) -> None:
        """These requests, by handle, ended in one frame. What a client or its deadline ended does not count."""
        counted = [terminal for handle, terminal in ended if self._counts(current, (handle,))]
        if any(terminal.reason in ENDED_WELL for terminal in counted):
            self._tell(self._breaker.on_success)
            return
        errors = [terminal.error for terminal in counted if is_failure(terminal.error)]
        if errors:
            self._fail(errors[0])

    def on_call(self) -> Callable[[TokenwireError | None], None]:
        """A call of its own begins, on no stream. What is returned is told how it ended: None for well.

        Once the breaker has opened since, how it ended says nothing.
        """
        self._tell(self._breaker.on_submit)
        begun_in = self._breaker.state

        def end(error: TokenwireError | None) -> None:
            if self._breaker.state is not begun_in:
                return
            if error is None:
                self._tell(self._breaker.on_success)
            elif is_failure(error):
                self._fail(error)

        return end

    def on_lost(self, current: bool, handles: Collection[int], error: TokenwireError) -> None:
        """A stream broke under these requests. A message that was too large for the tier says nothing bad of it."""
        if handles and not isinstance(error, MessageTooLarge) and self._counts(current, handles):
            self._fail(error)

    def _counts(self, current: bool, handles: Collection[int]) -> bool:
        if self._breaker.state is BreakerState.CLOSED:
            return True
        first = self._first_since_open
        return current and first is not None and any(handle >= first for handle in handles)

    def _fail(self, error: TokenwireError | None) -> None:
        self._tell(lambda: self._breaker.on_failure(str(error)))

    def _tell(self, call: Callable[[], None]) -> None:
        before = self._breaker.state
        call()
        after = self._breaker.state
        if after is before:
            return
        if after is BreakerState.OPEN:
            self._first_since_open = None
            log.warning("tier below failing", extra=fields(target=self._target, problem=self._breaker.problem()))
        elif after is BreakerState.CLOSED:
            log.info("tier below works again", extra=fields(target=self._target))
        self._on_change()
