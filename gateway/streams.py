"""What a call reads: the outputs of its prompts, merged, in whatever order they come.

Whoever reads is either woken, at most once for each frame, or listens and is called at once, which costs no task
switch. What arrives while the reader is busy is merged by concatenation, so a slow reader holds one text per output
and slows nobody; log-probabilities past what fits a message begin another event. Does not know tiers or the wire.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gateway.metrics import RequestRecord
from gateway.submission import Direct, Submission
from tokenwire.logprobs import SequenceLogprobs, has_room, joined
from tokenwire.parsed import Parsed, joined_parsed
from tokenwire.requests import CancelReason, Terminal


@dataclass(slots=True)
class Event:
    """What is new in one output, and its terminal event when it has ended."""

    prompt: int
    choice: int
    text: str = ""
    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: SequenceLogprobs | None = None
    parsed: Parsed | None = None
    """Reasoning, from before the text, and pieces of tool calls, from behind it."""
    terminal: Terminal | None = None


class Output:
    """One choice of one prompt: the sink below a `TextStream`."""

    __slots__ = ("_pending", "_stream", "begun", "burst", "choice", "direct", "prompt")

    def __init__(self, stream: "TextStream", prompt: int, choice: int) -> None:
        self._stream = stream
        self.prompt = prompt
        self.choice = choice
        self.begun = False
        """Something of it has come."""
        self.direct: Direct | None = None
        """Takes text alone past this output, which must have nothing waiting then."""
        self.burst: Direct | None = None
        """The same, of a frame with several texts for somebody."""
        self._pending: deque[Event] = deque()
        """All but the last are as large as a message may be."""

    def on_text(
        self,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """Merge with what waits. Tokens without text yet go with the next text."""
        pending = self._pending
        event = pending[-1] if pending else self._new_event()
        if logprobs is not None:
            if not has_room(event.logprobs, logprobs):
                event = self._new_event()
            event.logprobs = joined(event.logprobs, logprobs)
        if parsed is not None:
            event.parsed = joined_parsed(event.parsed, parsed)
        event.text += text
        event.num_tokens += num_tokens
        if token_ids:
            event.token_ids.extend(token_ids)
        if event.text or event.parsed is not None or len(pending) > 1:
            self._stream.wake(self)

    def on_finish(self, terminal: Terminal) -> None:
        """The end, behind the text that waits."""
        event = self._pending[-1] if self._pending else self._new_event()
        event.terminal = terminal
        self._stream.wake(self)

    @property
    def waits(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._pending)

    def take(self) -> tuple[Event, bool]:
        """What waits longest, and whether more does."""
        return self._pending.popleft(), bool(self._pending)

    def _new_event(self) -> Event:
        self.begun = True
        event = Event(self.prompt, self.choice)
        self._pending.append(event)
        return event


class TextStream:
    """The outputs of one call. One reader; close it in a `finally`."""

    def __init__(self, record: RequestRecord, num_prompts: int, num_choices: int) -> None:
        self.record = record
        self.outputs = [[Output(self, p, c) for c in range(num_choices)] for p in range(num_prompts)]
        """By prompt and choice."""
        self.submissions: list[Submission] = []
        self._num_running = num_prompts * num_choices
        self._waiting: dict[Output, None] = {}
        self._wake = asyncio.Event()
        self._listener: Callable[[], None] | None = None
        self._closed = False
        record.num_prompts = num_prompts

    @property
    def has_more(self) -> bool:
        """Whether there is something to take now."""
        return bool(self._waiting)

    @property
    def over(self) -> bool:
        """Whether nothing more comes: every output has given its terminal event to the reader, or nobody reads."""
        return self._closed or (self._num_running == 0 and not self._waiting)

    def wake(self, output: Output) -> None:
        """Tell the reader that this output has something for it."""
        self._waiting[output] = None
        if self._listener is not None:
            self._listener()
        else:
            self._wake.set()

    def listen(self, listener: Callable[[], None] | None) -> None:
        """From now on call this whenever something has come, and when the stream is closed; None: wake a reader again.

        It is called from within whatever brought the news, and must not block or raise; it may leave what there is for
        later. It is not called for what waits already.
        """
        self._listener = listener

    async def next_events(self) -> list[Event]:
        """Wait for something new and take all of it, one event per output; empty when everything has ended."""
        while not self._waiting and not self.over:
            self._wake.clear()
            await self._wake.wait()
        return self.take_events()

    def take_events(self) -> list[Event]:
        """What has come, one event per output; empty when there is nothing."""
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, {}
        events: list[Event] = []
        for output in waiting:
            event, more = output.take()
            events.append(event)
            if more:
                self._waiting[output] = None
            if (event.text or event.parsed) and not self.record.started:
                self.record.saw_text()
            if event.terminal is not None:
                self._num_running -= 1
                self.record.ended(event.terminal, event.prompt)
                event.terminal = replace(event.terminal, gateway_timings=self.record.timings())
        return events

    def close(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Nobody reads any more: cancel what still runs. Wakes a reader, which then sees the end."""
        if self._closed:
            return
        self._closed = True
        while self.submissions:  # they hold the prompts, and outputs and stream hold each other
            self.submissions.pop().abandon(reason)
        self._wake.set()
        if self._listener is not None:
            self._listener()
