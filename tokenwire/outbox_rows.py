"""What one open sequence has waiting in an outbox: rows of text, how many of them may be sent, and the terminal event.

Knows credit and how rows merge; does not know frames, nor other sequences.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tokenwire.logprobs import SequenceLogprobs, has_room, joined
from tokenwire.parsed import Parsed, joined_parsed
from tokenwire.requests import FinishReason, Terminal
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import logprob_to_wire, tool_call_to_wire

LOGPROB_CHARS = 16
"""What one entry of log-probabilities counts as."""


@dataclass(slots=True)
class Row:
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
class Waiting:
    """One open sequence."""

    credit: int | None
    """Tokens that may be sent; None: no limit."""
    rows: deque[Row] = field(default_factory=deque)
    terminal: Terminal | None = None
    taken_back: bool = False
    dropped: bool = False
    """Text was lost to the peer's taking it back."""
    deadline_s: float | None = None
    """Monotonic clock; until then the terminal event may wait for credit. None: for ever."""
    timer: asyncio.TimerHandle | None = None
    """Runs while the terminal event waits so."""

    @property
    def sendable(self) -> bool:
        """Whether a row or the terminal event may be sent now."""
        if not self.rows:
            return self.terminal is not None
        return self.credit is None or self.credit > 0 or self.rows[0].num_tokens == 0  # a held-back end needs no credit

    @property
    def num_ungranted(self) -> int:
        """Tokens of its rows beyond its credit."""
        return 0 if self.credit is None else max(0, sum(row.num_tokens for row in self.rows) - self.credit)

    def stop_timer(self) -> None:
        """The terminal event waits for credit no more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def extras_of(handle: int, row: Row) -> tokenizer_pb2.Extras:
    """What stands beside a row's text."""
    extras = tokenizer_pb2.Extras(handle=handle, token_ids=row.token_ids)
    if row.logprobs is not None:
        extras.logprobs.extend(map(logprob_to_wire, row.logprobs.tokens))
        extras.prompt_logprobs.extend(map(logprob_to_wire, row.logprobs.prompt))
    if row.parsed is not None:
        extras.reasoning = row.parsed.reasoning
        extras.tool_calls.extend(map(tool_call_to_wire, row.parsed.tool_calls))
    return extras


def drop_ungranted(waiting: Waiting) -> bool:
    """Keep the rows that may be sent as they are. Returns whether there were others."""
    credit = waiting.credit
    if credit is None:
        return False
    kept: deque[Row] = deque()
    for row in waiting.rows:
        credit -= row.num_tokens
        if credit < 0:
            break
        kept.append(row)
    num_dropped = len(waiting.rows) - len(kept)
    waiting.rows = kept
    return num_dropped > 0


def cut(terminal: Terminal, reason: FinishReason = FinishReason.CANCELLED) -> Terminal:
    """What a sequence ends with whose text did not all arrive: an ordinary end becomes `reason`. Counts stay."""
    if terminal.reason in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH):
        return replace(terminal, reason=reason, stop_token_id=None, stop_string=None)
    return terminal


def take_row(waiting: Waiting) -> Row | None:
    """What credit and a frame allow, as one row. Text whose last token is not granted yet stays behind."""
    if not waiting.rows:
        return None
    if waiting.credit is None:
        return waiting.rows.popleft()
    taken = Row("", 0, [])
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
