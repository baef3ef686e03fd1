"""One prompt on its way through a tokenizer tier: its handles, its time limit, and its second chance.

Whatever happens below, each choice gets exactly one terminal event: from the tier, or from here when the tier is lost
or lets the deadline pass. Does not know what becomes of the text.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.limits.limiter import FREE, Lease
from gateway.text_requests import TextRequest
from tokenwire.errors import TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.parsed import Parsed
from tokenwire.requests import CancelReason, FinishReason, RequestContext, Terminal, Usage
from tokenwire.routing.outcomes import ENDED_WELL
from tokenwire.session import SessionStream
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import context_to_wire

DEADLINE_GRACE_S = 0.25
"""How long the tiers below may take to say themselves that the time has run out."""


NUMBERS = itertools.count(1)
"""Of this process' submissions."""
Direct = Callable[[str, int], None]
"""Takes text, not empty, and the number of tokens behind it. Must not block or raise."""


class Sink(Protocol):
    """Who receives one choice. Called on the event loop; must not block or raise."""

    direct: Direct | None
    """Where set: takes text alone, instead of `on_text`. To be set once `on_text` was called."""
    burst: Direct | None
    """Set where `direct` is: takes text alone of a frame that has several texts for somebody."""

    def on_text(
        self,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text, which may be empty, and the tokens behind it. `logprobs` and `parsed` belong to the sink then."""

    def on_finish(self, terminal: Terminal) -> None:
        """The end; nothing follows."""


class Choice:
    """One output of a submission: what a session's handle leads to."""

    __slots__ = ("handle", "num_tokens", "sink", "submission")

    def __init__(self, submission: "Submission", sink: Sink) -> None:
        self.submission = submission
        self.sink = sink
        self.handle = 0
        self.num_tokens = 0

    def on_text(
        self,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text from below."""
        self.num_tokens += num_tokens
        self.submission.started = True
        self.sink.on_text(text, num_tokens, token_ids, logprobs, parsed)

    def on_finish(self, terminal: Terminal) -> None:
        """The end, from below or from here. The handle has been taken out of the stream's receivers."""
        self.submission.started = True
        self.submission.count(terminal, self.num_tokens)
        self.submission.choice_ended(self)
        self.sink.on_finish(terminal)

    def partial(self, reason: FinishReason, error: TokenwireError | None = None) -> Terminal:
        """A terminal event made here, with the tokens counted so far."""
        return Terminal(reason, usage=Usage(completion_tokens=self.num_tokens), error=error)


class Submission:
    """One prompt with its choices. Made, placed and re-placed by `Backends`."""

    def __init__(
        self,
        request: TextRequest,
        context: RequestContext,
        sinks: Sequence[Sink],
        on_closed: Callable[["Submission"], None],
        give_up_s: float | None = None,
        lease: Lease = FREE,
    ) -> None:
        """`lease`: what was charged for it; settled when the last choice ends."""
        self.number = next(NUMBERS)
        """Tells it from all others of this process, and says nothing else."""
        self.request = request
        self.context = context
        self.choices = [Choice(self, sink) for sink in sinks]
        """The open ones."""
        self.num_choices = len(self.choices)
        """How many there were at the start."""
        self.started = False
        """Something was passed on, so the request cannot begin again elsewhere."""
        self.cancelled = False
        """The caller took a choice back."""
        self.ended_well = False
        """One of its choices came to an end of its own."""
        self.stream: SessionStream[Choice] | None = None
        self._on_closed = on_closed
        self._lease = lease
        self._prompt_tokens: int | None = None
        self.num_completion_tokens = 0
        """Of the choices that have ended."""
        self.last_terminal: Terminal | None = None
        """Of the choice that ended last, where a tier or a failure ended it."""
        self._timer: asyncio.TimerHandle | None = None
        if give_up_s is not None:
            delay_s = max(0.0, give_up_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._out_of_time)

    def place(self, stream: SessionStream[Choice]) -> None:
        """Submit on this stream."""
        self.stream = stream
        self.request.context.CopyFrom(context_to_wire(self.context))
        handle = stream.open(self.choices)
        for offset, choice in enumerate(self.choices):
            choice.handle = handle + offset
        stream.submit(tokenizer_pb2.Submit(handle=handle, request=self.request))

    def leave(self) -> None:
        """Take what is open back from where it was placed, to be placed elsewhere."""
        for choice in self.choices:
            self._detach(choice, CancelReason.CLIENT)

    def cancel(self, choice: Choice, reason: CancelReason) -> None:
        """Ask the tier to end one choice; its terminal event still comes. An ended choice is ignored."""
        if self.stream is not None and choice in self.choices:
            self.cancelled = True
            self.stream.cancel(choice.handle, reason)

    def abandon(self, reason: CancelReason) -> None:
        """Nobody listens any more: cancel what is open, and tell no sink."""
        for choice in list(self.choices):
            self._detach(choice, reason)
            self.num_completion_tokens += choice.num_tokens
            self.choice_ended(choice)

    def fail(self, error: TokenwireError) -> None:
        """End every open choice with this error."""
        for choice in list(self.choices):
            self._detach(choice, CancelReason.SHUTDOWN)
            choice.on_finish(choice.partial(FinishReason.ERROR, error))

    def count(self, terminal: Terminal, num_tokens: int) -> None:
        """A choice used so much: what its end says, at least the tokens that came."""
        usage, self.last_terminal = terminal.usage, terminal
        self.ended_well |= terminal.reason in ENDED_WELL
        num_tokens = max(usage.completion_tokens, num_tokens)
        self.num_completion_tokens += num_tokens
        if usage.prompt_tokens or (terminal.error is not None and not num_tokens):
            self._prompt_tokens = max(self._prompt_tokens or 0, usage.prompt_tokens)

    def choice_ended(self, choice: Choice) -> None:
        """Forget a choice, and with the last one the submission."""
        self.choices.remove(choice)
        if not self.choices:
            if self._timer is not None:
                self._timer.cancel()
            self._lease.settle(self._prompt_tokens, self.num_completion_tokens)
            self._on_closed(self)

    def _out_of_time(self) -> None:
        for choice in list(self.choices):
            self._detach(choice, CancelReason.DEADLINE)
            choice.on_finish(choice.partial(FinishReason.DEADLINE))

    def _detach(self, choice: Choice, reason: CancelReason) -> None:
        """Stop receiving for a choice and take it back below, where the stream is still there."""
        if self.stream is not None and self.stream.receivers.pop(choice.handle, None) is not None:
            self.stream.cancel(choice.handle, reason)
