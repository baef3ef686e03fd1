"""What a call reads: the outputs of its prompts, merged, in whatever order they come.

Frames wake the reader at most once each; what arrives while the reader is busy is merged by concatenation, so a slow
reader holds one text per output and slows nobody; log-probabilities past what fits a message begin another event. Does
not know tiers or the wire.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gateway.metrics import RequestRecord
from gateway.submission import Submission
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

    __slots__ = ("_pending", "_stream", "choice", "prompt")

    def __init__(self, stream: "TextStream", prompt: int, choice: int) -> None:
        self._stream = stream
        self.prompt = prompt
        self.choice = choice
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
        event = self._last_event()
        if logprobs is not None:
            if not has_room(event.logprobs, logprobs):
                event = self._new_event()
            event.logprobs = joined(event.logprobs, logprobs)
        if parsed is not None:
            event.parsed = joined_parsed(event.parsed, parsed)
        event.text += text
        event.num_tokens += num_tokens
        event.token_ids.extend(token_ids)
        if event.text or event.parsed is not None or len(self._pending) > 1:
            self._stream.wake(self)

    def on_finish(self, terminal: Terminal) -> None:
        """The end, behind the text that waits."""
        self._last_event().terminal = terminal
        self._stream.wake(self)

    def take(self) -> Event:
        """What waits longest."""
        event = self._pending.popleft()
        if self._pending:
            self._stream.wake(self)
        return event

    def _last_event(self) -> Event:
        return self._pending[-1] if self._pending else self._new_event()

    def _new_event(self) -> Event:
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
        self._closed = False
        record.num_prompts = num_prompts

    def wake(self, output: Output) -> None:
        """Tell the reader that this output has something for it."""
        self._waiting[output] = None
        self._wake.set()

    async def next_events(self) -> list[Event]:
        """Wait for something new and take all of it, one event per output; empty when everything has ended."""
        while not self._waiting:
            if self._num_running == 0 or self._closed:
                return []
            self._wake.clear()
            await self._wake.wait()
        waiting, self._waiting = self._waiting, {}
        events = [output.take() for output in waiting]
        if any(event.text or event.parsed for event in events):
            self.record.saw_text()
        for event in events:
            if event.terminal is not None:
                self._num_running -= 1
                self.record.ended(event.terminal, event.prompt)
                event.terminal = replace(event.terminal, gateway_timings=self.record.timings())
        return events

    def close(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Nobody reads any more: cancel what still runs. Wakes a reader, which then sees the end."""
        self._closed = True
        self._wake.set()
        for submission in self.submissions:
            submission.abandon(reason)
