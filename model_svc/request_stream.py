"""What a per-request stream has to send: one response per choice that has anything new. Does not know who reads it.

A slow reader's responses are merged; log-probabilities, which grow large, close a response and begin another.
"""

import asyncio

from model_svc.token_frame import MAX_LOGPROB_ENTRIES
from tokenwire.errors import TokenwireError
from tokenwire.requests import Terminal, TokenLogprob
from tokenwire.v1 import model_pb2
from tokenwire.wire import logprob_to_wire, terminal_to_wire

Response = model_pb2.ModelServiceGenerateResponse


class RequestStream:
    """The sink of one request's sequences."""

    def __init__(self, num_choices: int) -> None:
        self.num_open = num_choices
        """Choices whose end has not been taken."""
        self.failure: TokenwireError | None = None
        """The last choice's error, once every choice has ended with one: the request's own."""
        self._wake = asyncio.Event()
        self._num_choices = num_choices
        self._num_failed = 0
        self._num_entries = 0
        self._closed: list[Response] = []
        self._responses: dict[int, Response] = {}
        self._num_ended = 0

    async def take(self) -> list[Response]:
        """Wait for a step that gave something, and take all there is."""
        await self._wake.wait()
        self._wake.clear()
        taken = [*self._closed, *self._responses.values()]
        self._closed, self._responses, self._num_entries = [], {}, 0
        self.num_open -= self._num_ended
        self._num_ended = 0
        return taken

    def on_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        """One more token of choice `handle`."""
        response = self._response(handle)
        response.token_ids.append(token_id)
        if logprob is not None:
            response.logprobs.append(logprob_to_wire(logprob))
            self._num_entries += 1 + len(logprob.top)

    def on_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        """Log-probabilities of the prompt's next tokens."""
        self._response(handle).prompt_logprobs.extend(map(logprob_to_wire, logprobs))
        self._num_entries += sum(1 + len(logprob.top) for logprob in logprobs)

    def on_end(self, handle: int, terminal: Terminal) -> None:
        """Choice `handle` has ended. An only choice's error is left to the call's status."""
        self._num_ended += 1
        if terminal.error is not None:
            self._num_failed += 1
            if self._num_failed == self._num_choices:
                self.failure = terminal.error
        if terminal.error is None or self._num_choices > 1:
            self._response(handle).finish.CopyFrom(terminal_to_wire(terminal))

    def flush(self) -> None:
        """A step is complete: let the reader look."""
        if self._num_entries >= MAX_LOGPROB_ENTRIES:
            self._closed.extend(self._responses.values())
            self._responses, self._num_entries = {}, 0
        self._wake.set()

    def _response(self, choice: int) -> Response:
        response = self._responses.get(choice)
        if response is None:
            response = self._responses[choice] = Response(choice=choice)
        return response
