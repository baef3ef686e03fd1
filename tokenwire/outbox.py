"""What waits to be sent down one text session: one row per sequence, then its terminal event.

Text that arrives while the peer is busy is merged, so a slow reader costs one row and slows nobody. A sequence with
credit keeps its rows apart until they are granted; text, what was split from it, token ids and log-probabilities follow
the last of the tokens they stand for, and the terminal event follows the text. What is too large for one frame is
spread over several. Does not know where text comes from.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenwire.logprobs import SequenceLogprobs, has_room, joined
from tokenwire.parsed import Parsed, joined_parsed
from tokenwire.requests import FinishReason, Terminal
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.wire import logprob_to_wire, terminal_to_wire, tool_call_to_wire

MAX_FRAME_CHARS = 512 * 1024
"""A frame is closed when its text reaches this, so that it fits a client's default limit of 4 MiB."""
LOGPROB_CHARS = 16
"""What one entry of log-probabilities counts as."""


@dataclass(slots=True)
class _Row:
    """Text that is not sent yet, and the tokens behind it."""

    text: str
    num_tokens: int
    token_ids: list[int]
    logprobs: SequenceLogprobs | None = None
    parsed: Parsed | None = None

    def add(
        self,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None,
        parsed: Parsed | None,
    ) -> None:
        """Merge with what came later."""
        self.text += text
        self.num_tokens += num_tokens
        self.token_ids.extend(token_ids)
        if logprobs is not None:
            self.logprobs = joined(self.logprobs, logprobs)
        if parsed is not None:
            self.parsed = joined_parsed(self.parsed, parsed)

    @property
    def num_chars(self) -> int:
        """How much it counts for in a frame."""
        logprobs = LOGPROB_CHARS * self.logprobs.num_entries if self.logprobs is not None else 0
        return len(self.text) + logprobs + (self.parsed.num_chars if self.parsed is not None else 0)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One open sequence."""

    credit: int | None
    """Tokens that may be sent; None: no limit."""
    rows: deque[_Row] = field(default_factory=deque)
    terminal: Terminal | None = None
    taken_back: bool = False
    dropped: bool = False
    """Text was lost to the peer's taking it back."""

    @property
    def sendable(self) -> bool:
        if not self.rows:
            return self.terminal is not None
        return self.credit is None or self.credit > 0 or self.rows[0].num_tokens == 0  # a held-back end needs no credit


class TextOutbox:
    """Rows and terminal events of one session's open sequences, by handle. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[int, _Waiting] = {}
        self._sendable: dict[int, None] = {}
        """Handles with something to send, in the order in which they became so."""
        self._drain: common_pb2.Drain | None = None
        self._models: Sequence[common_pb2.ModelCard] = ()
        self._ending = False
        self._wake = asyncio.Event()
        self.num_undelivered = 0
        """Terminal events that have not been put into a frame yet."""

    @property
    def num_open(self) -> int:
        """Sequences whose terminal event has not been put into a frame."""
        return len(self._open)

    def open(self, handle: int, credit: int | None = None) -> None:
        """Begin a sequence. `credit`: tokens that may be sent before the first `grant`; None: no limit."""
        self._open[handle] = _Waiting(credit)

    def add_text(
        self,
        handle: int,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int] = (),
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text of a sequence. Ignored once it is finished or unknown.

        `logprobs` and `parsed` belong to the outbox then.
        """
        waiting = self._open.get(handle)
        if waiting is None or waiting.terminal is not None:
            return
        if waiting.taken_back:
            waiting.dropped = True
            return
        if logprobs is not None:
            *before, logprobs = logprobs.pieces()
            waiting.rows.extend(_Row("", 0, [], piece) for piece in before)
        last = waiting.rows[-1] if waiting.rows and waiting.credit is None else None
        if last is not None and (logprobs is None or has_room(last.logprobs, logprobs)):
            last.add(text, num_tokens, token_ids, logprobs, parsed)
        else:
            waiting.rows.append(_Row(text, num_tokens, [*token_ids], logprobs, parsed))
        self._mark(handle, waiting)

    def finish(self, handle: int, terminal: Terminal) -> None:
        """The sequence's terminal event; it is sent after its text. Ignored once it is finished or unknown.

        DEADLINE waits for no credit: what is not granted by then is dropped.
        """
        waiting = self._open.get(handle)
        if waiting is None or waiting.terminal is not None:
            return
        if terminal.reason is FinishReason.DEADLINE and waiting.credit is not None:
            _drop_ungranted(waiting, waiting.credit)
        waiting.terminal = _cut(terminal) if waiting.dropped else terminal
        self.num_undelivered += 1
        self._mark(handle, waiting)

    def grant(self, handle: int, num_tokens: int) -> None:
        """Allow more tokens. Ignored for an unknown sequence and for one without a limit."""
        waiting = self._open.get(handle)
        if waiting is not None and waiting.credit is not None:
            waiting.credit += num_tokens
            self._mark(handle, waiting)

    def discard_text(self, handle: int) -> None:
        """The peer takes the sequence back: text that waits is dropped, the terminal event waits for nothing."""
        waiting = self._open.get(handle)
        if waiting is not None:
            waiting.taken_back = True
            if waiting.rows:
                waiting.dropped = True
                waiting.rows.clear()
                if waiting.terminal is not None:
                    waiting.terminal = _cut(waiting.terminal)
            self._mark(handle, waiting)

    def drain(self, reason: str, grace_ms: int = 0) -> None:
        """Tell the peer to go elsewhere; frames end when nothing is open any more."""
        self._drain = common_pb2.Drain(reason=reason, grace_ms=grace_ms)
        self.end()

    def announce(self, models: Sequence[common_pb2.ModelCard]) -> None:
        """Tell the peer what takes the place of the models that Hello named."""
        self._models = models
        self._wake.set()

    def end(self) -> None:
        """Nothing more will be opened: frames end when nothing is open any more."""
        self._ending = True
        self._wake.set()

    async def next_frame(self) -> tokenizer_pb2.SessionResponse | None:
        """Wait for something to send and take all of it; None once ending and every sequence has ended."""
        while not self._sendable and self._drain is None and not self._models:
            if self._ending and not self._open:
                return None
            self._wake.clear()
            await self._wake.wait()
        frame = tokenizer_pb2.SessionResponse(models=self._models)
        self._models = ()
        if self._drain is not None:
            frame.drain.CopyFrom(self._drain)
            self._drain = None
        self._fill(frame)
        return frame

    def _mark(self, handle: int, waiting: _Waiting) -> None:
        if (waiting.credit is None and waiting.rows) or waiting.sendable:
            self._sendable[handle] = None
            self._wake.set()
        else:
            self._sendable.pop(handle, None)

    def _fill(self, frame: tokenizer_pb2.SessionResponse) -> None:
        """Move what may be sent into the frame, one row per sequence: what else one has goes with the next frame."""
        handles: list[int] = []
        texts: list[str] = []
        counts: list[int] = []
        num_chars = 0
        left: list[int] = []
        sendable, self._sendable = self._sendable, {}
        for handle in sendable:
            if num_chars >= MAX_FRAME_CHARS:
                self._sendable[handle] = None
                continue
            waiting = self._open[handle]
            row = _take_row(waiting)
            if row is not None:
                handles.append(handle)
                texts.append(row.text)
                counts.append(row.num_tokens)
                if row.logprobs is not None or row.parsed is not None or row.token_ids:
                    frame.extras.append(_extras(handle, row))
                    num_chars += row.num_chars
                else:
                    num_chars += len(row.text)
            if waiting.rows:
                left.append(handle)
            elif waiting.terminal is not None:
                frame.finishes.append(terminal_to_wire(waiting.terminal, handle))
                del self._open[handle]
                self.num_undelivered -= 1
        frame.handles.extend(handles)
        frame.texts.extend(texts)
        frame.num_tokens.extend(counts)
        for handle in left:
            self._mark(handle, self._open[handle])


def _extras(handle: int, row: _Row) -> tokenizer_pb2.Extras:
    """What stands beside a row's text."""
    extras = tokenizer_pb2.Extras(handle=handle, token_ids=row.token_ids)
    if row.logprobs is not None:
        extras.logprobs.extend(map(logprob_to_wire, row.logprobs.tokens))
        extras.prompt_logprobs.extend(map(logprob_to_wire, row.logprobs.prompt))
    if row.parsed is not None:
        extras.reasoning = row.parsed.reasoning
        extras.tool_calls.extend(map(tool_call_to_wire, row.parsed.tool_calls))
    return extras


def _drop_ungranted(waiting: _Waiting, credit: int) -> None:
    """Keep the rows that may be sent as they are."""
    kept: deque[_Row] = deque()
    for row in waiting.rows:
        credit -= row.num_tokens
        if credit < 0:
            break
        kept.append(row)
    waiting.rows = kept


def _cut(terminal: Terminal) -> Terminal:
    """What a sequence ends with whose text did not all arrive: an ordinary end becomes CANCELLED."""
    if terminal.reason in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH):
        return Terminal(FinishReason.CANCELLED, usage=terminal.usage)
    return terminal


def _take_row(waiting: _Waiting) -> _Row | None:
    """What credit and a frame allow, as one row. Text whose last token is not granted yet stays behind."""
    if not waiting.rows:
        return None
    if waiting.credit is None:
        return waiting.rows.popleft()
    taken = _Row("", 0, [])
    while waiting.sendable and waiting.rows and has_room(taken.logprobs, waiting.rows[0].logprobs):
        row = waiting.rows[0]
        granted = min(row.num_tokens, waiting.credit)
        waiting.credit -= granted
        if granted < row.num_tokens:
            row.num_tokens -= granted
            taken.num_tokens += granted
            break
        taken.add(row.text, granted, row.token_ids, row.logprobs, row.parsed)
        waiting.rows.popleft()
    return taken
