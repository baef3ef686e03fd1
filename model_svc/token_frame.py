"""What waits to be sent down one token session, as columns that become frames. Does not know where it comes from.

While a frame is on its way, later steps merge into the next: a token costs a few bytes however long that takes. Only
log-probabilities and errors grow large; with many of them, what waits is spread over several frames.
"""

from collections import deque
from itertools import chain

from tokenwire.requests import Terminal, TokenLogprob
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.wire import logprob_to_wire, terminal_to_wire

MAX_LOGPROB_ENTRIES = 16_384
"""Tokens and alternatives after which a frame is closed: ENTRY_BYTES each, far below a client's limit of 4 MiB. Errors
count as what they take."""
ENTRY_BYTES = 15
"""About."""

END_SIZE = 16


class TokenFrames:
    """One session's columns. Rows come in the order in which sequences first gave something."""

    def __init__(self) -> None:
        self._closed: deque[tuple[model_pb2.ModelServiceSessionResponse, int]] = deque()
        self.num_unsent = 0
        """Tokens, log-probabilities and ends (each as END_SIZE) that wait to be taken."""
        self._clear()

    def _clear(self) -> None:
        self._tokens: dict[int, list[int]] = {}
        self._logprobs: dict[int, model_pb2.SequenceLogprobs] = {}
        self._finishes: list[common_pb2.Finish] = []
        self._num_entries = self._size = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self._closed or self._tokens or self._logprobs or self._finishes)

    @property
    def has_more(self) -> bool:
        """Whether one frame does not hold all."""
        return len(self._closed) > 0

    def add_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        """One more token of a sequence."""
        self._grow(1)
        tokens = self._tokens.get(handle)
        if tokens is None:
            self._tokens[handle] = [token_id]
        else:
            tokens.append(token_id)
        if logprob is not None:
            self._logprobs_of(handle).tokens.append(logprob_to_wire(logprob))
            self._add_entries(1 + len(logprob.top))

    def add_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        """Those of the prompt's next tokens."""
        self._logprobs_of(handle).prompt.extend(map(logprob_to_wire, logprobs))
        self._add_entries(sum(1 + len(logprob.top) for logprob in logprobs))

    def add_end(self, handle: int, terminal: Terminal) -> None:
        """A sequence's terminal event."""
        finish = terminal_to_wire(terminal, handle)
        self._finishes.append(finish)
        self._grow(END_SIZE)
        if terminal.error is not None:
            self._num_entries += finish.ByteSize() // ENTRY_BYTES

    def end_step(self) -> None:
        """A step is complete: close the frame if it is large enough."""
        if self._num_entries >= MAX_LOGPROB_ENTRIES:
            size = self._size
            self._closed.append((self._close(), size))

    def take(self) -> model_pb2.ModelServiceSessionResponse:
        """The next frame, without load and credit; an empty one when there is nothing."""
        if self._closed:
            frame, size = self._closed.popleft()
            self.num_unsent -= size
            return frame
        self.num_unsent -= self._size
        return self._close()

    def _add_entries(self, count: int) -> None:
        self._num_entries += count
        self._grow(count)

    def _grow(self, size: int) -> None:
        self._size += size
        self.num_unsent += size

    def _close(self) -> model_pb2.ModelServiceSessionResponse:
        frame = model_pb2.ModelServiceSessionResponse(
            handles=self._tokens.keys(),
            token_ids=chain.from_iterable(self._tokens.values()),
            logprobs=self._logprobs.values(),
            finishes=self._finishes,
        )
        if any(len(ids) != 1 for ids in self._tokens.values()):
            frame.counts.extend(map(len, self._tokens.values()))
        self._clear()
        return frame

    def _logprobs_of(self, handle: int) -> model_pb2.SequenceLogprobs:
        found = self._logprobs.get(handle)
        if found is None:
            found = self._logprobs[handle] = model_pb2.SequenceLogprobs(handle=handle)
        return found
