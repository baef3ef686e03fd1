"""What waits to be sent down one text session: rows of text, then each sequence's terminal event.

Frames keep a distance of FRAME_GAP_S, since what one costs hardly grows with what is in it. Text alone, of a sequence
without a limit, waits in the columns that the next frame is made of, a row for each time it came; past MAX_ROWS rows
are merged, so a slow reader costs one row per sequence and slows nobody. A sequence with credit keeps its rows apart
until they are granted; text, what was split from it, token ids and log-probabilities follow the last of the tokens they
stand for, and the terminal event follows the text, no longer than the sequence has time. What is too large for one
frame is spread over several. Does not know where text comes from.
"""

import asyncio
import time
from collections.abc import Sequence

from tokenwire.logprobs import SequenceLogprobs, has_room
from tokenwire.outbox_columns import Columns
from tokenwire.outbox_rows import Row, Waiting, cut, drop_ungranted, extras_of, take_row
from tokenwire.parsed import Parsed
from tokenwire.requests import FinishReason, Terminal
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.wire import terminal_to_wire

QUIET_S = 1.0
"""How long nothing must be open, once the peer was told to go elsewhere, before frames end."""
MAX_FRAME_CHARS = 512 * 1024
"""A frame is closed when its text reaches this, so that it fits a client's default limit of 4 MiB."""
MAX_ROWS = 4096
"""Of text alone; more than that, and twice the sequences that had some when they were last merged, are merged."""
FRAME_GAP_S = 0.001
"""From one frame to the next, at least. What comes after a silence of that length goes at once."""
BEAT_S = 5.0
"""From one frame to the next, at most, while something is open: an empty one says that this side is there."""


class TextOutbox:
    """Rows and terminal events of one session's open sequences, by handle. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[int, Waiting] = {}
        self._plain: set[int] = set()
        """Handles whose text goes into the columns: without a limit, and nothing but text has come."""
        self._columns = Columns()
        """Of the next frame."""
        self._most_rows = MAX_ROWS
        self._sendable: dict[int, None] = {}
        """Handles with something to send, in the order in which they became so."""
        self._drain: common_pb2.Drain | None = None
        self._models: Sequence[common_pb2.ModelCard] = ()
        self._draining = False
        self._ending = False
        self._wake = asyncio.Event()
        self._next_s = 0.0
        """When the next frame may go, on the monotonic clock."""
        self.num_undelivered = 0
        """Terminal events that have not been put into a frame yet."""

    @property
    def num_open(self) -> int:
        """Sequences whose terminal event has not been put into a frame."""
        return len(self._open)

    def open(self, handle: int, credit: int | None = None) -> None:
        """Begin a sequence. `credit`: tokens that may be sent before the first `grant`; None: no limit."""
        if not self._open:
            self._wake.set()  # it is waited for without a limit
        self._open[handle] = Waiting(credit)
        if credit is None:
            self._plain.add(handle)

    def limit(self, handle: int, deadline_s: float) -> None:
        """From then on, on the monotonic clock, the end of a sequence with credit waits for no more of it."""
        waiting = self._open.get(handle)
        if waiting is not None and waiting.credit is not None:
            waiting.deadline_s = deadline_s

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
        if handle in self._plain:
            if not token_ids and logprobs is None and parsed is None:
                columns = self._columns
                if not columns.handles:
                    self._wake.set()
                columns.handles.append(handle)
                columns.texts.append(text)
                columns.counts.append(num_tokens)
                if len(columns.handles) > self._most_rows:
                    self._merge_columns()
                return
            self._leave_columns(handle)
        waiting = self._open.get(handle)
        if waiting is None or waiting.terminal is not None:
            return
        if waiting.taken_back:
            waiting.dropped = True
            return
        if logprobs is not None:
            *before, logprobs = logprobs.pieces()
            waiting.rows.extend(Row("", 0, [], piece) for piece in before)
        last = waiting.rows[-1] if waiting.rows and waiting.credit is None else None
        if last is not None and (logprobs is None or has_room(last.logprobs, logprobs)):
            last.add(text, num_tokens, token_ids, logprobs, parsed)
        else:
            waiting.rows.append(Row(text, num_tokens, [*token_ids], logprobs, parsed))
        self._mark(handle, waiting)

    def finish(self, handle: int, terminal: Terminal) -> None:
        """The sequence's terminal event; it is sent after its text. Ignored once it is finished or unknown.

        DEADLINE waits for no credit: what is not granted by then is dropped.
        """
        waiting = self._open.get(handle)
        if waiting is None or waiting.terminal is not None:
            return
        self._plain.discard(handle)
        if terminal.reason is FinishReason.DEADLINE:
            drop_ungranted(waiting)
        elif waiting.deadline_s is not None and waiting.num_ungranted > 0:
            delay_s = max(0.0, waiting.deadline_s - time.monotonic())
            waiting.timer = asyncio.get_running_loop().call_later(delay_s, self._out_of_time, handle)
        waiting.terminal = cut(terminal) if waiting.dropped else terminal
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
        self._leave_columns(handle)
        waiting = self._open.get(handle)
        if waiting is not None:
            waiting.taken_back = True
            if waiting.rows:
                waiting.dropped = True
                waiting.rows.clear()
                if waiting.terminal is not None:
                    waiting.terminal = cut(waiting.terminal)
            self._mark(handle, waiting)

    def close(self) -> None:
        """Nobody reads any more: no time is kept."""
        for waiting in self._open.values():
            waiting.stop_timer()

    def drain(self, reason: str, grace_ms: int = 0) -> None:
        """Tell the peer to go elsewhere; frames end when nothing is open any more.

        A peer that does not end its side is given QUIET_S: what it had sent before it heard may be on its way.
        """
        self._drain = common_pb2.Drain(reason=reason, grace_ms=grace_ms)
        self._draining = True
        self._wake.set()

    def announce(self, models: Sequence[common_pb2.ModelCard]) -> None:
        """Tell the peer what takes the place of the models that Hello named."""
        self._models = models
        self._wake.set()

    def end(self) -> None:
        """Nothing more will be opened: frames end when nothing is open any more."""
        self._ending = True
        self._wake.set()

    async def next_frame(self) -> tokenizer_pb2.SessionResponse | None:
        """Wait for something to send and take all of it; None once ending or draining and every sequence has ended.

        An empty one after BEAT_S without, while something is open.
        """
        while not (self._columns.handles or self._sendable or self._models) and self._drain is None:
            if self._ending and not self._open:
                return None
            self._wake.clear()
            if self._open:
                if not await self._woken_within(BEAT_S):
                    return tokenizer_pb2.SessionResponse()
            elif not self._draining:
                await self._wake.wait()
            elif not await self._woken_within(QUIET_S) and not self._open:
                return None
        early_s = self._next_s - time.monotonic()
        if early_s > 0:
            await asyncio.sleep(early_s)
        self._next_s = time.monotonic() + FRAME_GAP_S
        frame = tokenizer_pb2.SessionResponse(models=self._models)
        self._models = ()
        if self._drain is not None:
            frame.drain.CopyFrom(self._drain)
            self._drain = None
        self._fill(frame)
        return frame

    async def _woken_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._wake.wait()
        except TimeoutError:
            return False

    def _merge_columns(self) -> None:
        self._columns = self._columns.merged()
        self._most_rows = max(MAX_ROWS, 2 * len(self._columns.handles))

    def _leave_columns(self, handle: int) -> None:
        """From now on the sequence's text waits in rows of its own, as does what there is of it."""
        self._plain.discard(handle)
        if handle in self._columns.handles:
            waiting = self._open[handle]
            waiting.rows.append(Row(*self._columns.take(handle), []))
            self._mark(handle, waiting)

    def _out_of_time(self, handle: int) -> None:
        """What has ended by itself and waits for credit ends with DEADLINE."""
        waiting = self._open[handle]
        if waiting.terminal is not None and drop_ungranted(waiting):
            waiting.terminal = cut(waiting.terminal, FinishReason.DEADLINE)
            self._mark(handle, waiting)

    def _mark(self, handle: int, waiting: Waiting) -> None:
        if (waiting.credit is None and waiting.rows) or waiting.sendable:
            self._sendable[handle] = None
            self._wake.set()
        else:
            self._sendable.pop(handle, None)

    def _fill(self, frame: tokenizer_pb2.SessionResponse) -> None:
        """Move what may be sent into the frame, one row per sequence: what else one has goes with the next frame."""
        columns = self._columns
        self._columns = columns.cut(MAX_FRAME_CHARS // 2 if self._sendable else MAX_FRAME_CHARS)
        late = set(self._columns.handles)
        num_chars = sum(map(len, columns.texts)) if self._sendable else 0
        left: list[int] = []
        sendable, self._sendable = self._sendable, {}
        for handle in sendable:
            if num_chars >= MAX_FRAME_CHARS or handle in late:
                self._sendable[handle] = None
                continue
            waiting = self._open[handle]
            row = take_row(waiting)
            if row is not None:
                columns.append(handle, row.text, row.num_tokens)
                if row.logprobs is not None or row.parsed is not None or row.token_ids:
                    frame.extras.append(extras_of(handle, row))
                    num_chars += row.num_chars
                else:
                    num_chars += len(row.text)
            if waiting.rows:
                left.append(handle)
            elif waiting.terminal is not None:
                finish = terminal_to_wire(waiting.terminal, handle)
                if waiting.terminal.error is not None:
                    num_chars += finish.ByteSize()
                frame.finishes.append(finish)
                waiting.stop_timer()
                del self._open[handle]
                self.num_undelivered -= 1
        frame.handles.extend(columns.handles)
        frame.texts.extend(columns.texts)
        frame.num_tokens.extend(columns.counts)
        for handle in left:
            self._mark(handle, self._open[handle])
