"""Answers of one request as messages: a whole one, or one for each piece that has come. Does not know tiers."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gateway.http.errors import error_of, renamed
from gateway.kserve.model import OUTPUT_DATATYPES, TEXT_INPUT, VERSION
from gateway.kserve.request import FINAL, InferRequest
from gateway.kserve.tensors import add_output
from gateway.streams import Event
from tokenwire.errors import TokenwireError
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.requests import FinishReason, Terminal, TokenLogprob

NOT_FINISHED = "None"
"""What the vLLM backend says as long as there is no reason."""

FINISH_REASONS = {FinishReason.STOP_TOKEN: "stop", FinishReason.STOP_STRING: "stop", FinishReason.LENGTH: "length"}
"""In vLLM's words; the others are errors here."""


class Row:
    """One choice of one text, and what is to be said of it."""

    __slots__ = ("choice", "cumulative", "field", "logprobs", "num_new_tokens", "pieces", "terminal", "text_index")

    def __init__(self, text_index: int, choice: int, field: str) -> None:
        self.text_index = text_index
        self.field = field
        """What errors call its text."""
        self.choice = choice
        self.pieces: list[str] = []
        self.num_new_tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self.cumulative = 0.0
        """Of all its tokens so far."""
        self.terminal: Terminal | None = None

    @property
    def num_tokens(self) -> int:
        """All of its tokens, once it has ended."""
        return self.terminal.usage.completion_tokens if self.terminal is not None else 0

    def add(self, event: Event) -> TokenwireError | None:
        """Take what is new. The error that ended it, under the names of this protocol; None: it has not."""
        self.pieces.append(event.text)
        self.num_new_tokens += event.num_tokens
        if event.logprobs is not None:
            self.logprobs += event.logprobs.tokens
            self.cumulative += sum(token.logprob for token in event.logprobs.tokens)
        error = None if event.terminal is None else error_of(event.terminal)
        if error is not None:
            return renamed(error, self.field)
        self.terminal = event.terminal
        return None

    def take(self) -> None:
        """What was new has been said."""
        self.pieces.clear()
        self.logprobs.clear()
        self.num_new_tokens = 0


class Answers:
    """What one request is answered."""

    def __init__(self, request: InferRequest, model: str) -> None:
        self._request = request
        self._model = model
        self._outputs = [name for name in OUTPUT_DATATYPES if name in request.outputs]
        """In the order of the model's metadata."""
        num_choices = request.options.num_choices
        fields = [TEXT_INPUT] if len(request.texts) == 1 else [f"{TEXT_INPUT}[{i}]" for i in range(len(request.texts))]
        self._rows = [[Row(i, choice, field) for choice in range(num_choices)] for i, field in enumerate(fields)]
        self._num_open = request.num_rows
        if request.prepend_input:
            for row in self._all_rows():
                row.pieces.append(request.texts[row.text_index])

    @property
    def over(self) -> bool:
        """Whether every row has ended."""
        return self._num_open == 0

    def collect(self, events: Iterable[Event]) -> Iterator[Row]:
        """Take what has come, row by row. Raises the error of a row, which is the request's, behind its last text."""
        for event in events:
            row = self._rows[event.prompt][event.choice]
            error = row.add(event)
            self._num_open -= row.terminal is not None
            if error is None or event.text:
                yield row
            if error is not None:
                raise error

    def on_stream(self, events: Iterable[Event]) -> Iterator[pb.ModelInferResponse]:
        """Take what has come; what is to be sent for it now. Raises as `collect` does."""
        empty_final = self._request.empty_final
        for row in self.collect(events):
            if self._request.stream:
                yield self._response([row], final=self.over and not empty_final)
                row.take()
        if self.over:
            if not self._request.stream:
                yield self.whole(final=not empty_final)
            if empty_final:
                yield self._head(final=True)

    def whole(self, *, final: bool | None = None) -> pb.ModelInferResponse:
        """One answer with every row. `final`: whether it ends the request on a stream; None: it is not on one."""
        return self._response(list(self._all_rows()), final)

    def failed(self, message: str) -> pb.ModelStreamInferResponse:
        """The last answer of a request that ends with an error."""
        return failed(message, self._head(final=True))

    def _all_rows(self) -> Iterable[Row]:
        return (row for rows in self._rows for row in rows)

    def _head(self, final: bool | None) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(model_name=self._model, model_version=VERSION, id=self._request.id)
        if final is not None:
            response.parameters[FINAL].bool_param = final
        return response

    def _response(self, rows: Sequence[Row], final: bool | None) -> pb.ModelInferResponse:
        response = self._head(final)
        shape = (len(rows),) if self._request.rank == 1 or self._request.options.num_choices > 1 else (len(rows), 1)
        for name in self._outputs:
            values = self._values(name, rows)
            if values:
                add_output(response, name, OUTPUT_DATATYPES[name], shape, values)
        return response

    def _values(self, name: str, rows: Sequence[Row]) -> list[Any]:
        """One for each row; empty: nothing is said yet."""
        if name == "text_output":
            return ["".join(row.pieces) for row in rows]
        if name == "finish_reason":
            return [NOT_FINISHED if row.terminal is None else FINISH_REASONS[row.terminal.reason] for row in rows]
        if name == "num_output_tokens":
            return [row.num_new_tokens if self._request.stream else row.num_tokens for row in rows]
        if name == "num_input_tokens":
            return [row.terminal.usage.prompt_tokens for row in rows if row.terminal is not None]
        if name == "cumulative_logprob":
            return [row.cumulative for row in rows]
        if name == "logprobs":
            return [logprobs_json(row.logprobs) for row in rows]
        return [row.text_index if name == "batch_index" else row.choice for row in rows]


def failed(message: str, head: pb.ModelInferResponse) -> pb.ModelStreamInferResponse:
    """A request's error on a stream; `head` says whose it is."""
    return pb.ModelStreamInferResponse(error_message=message or "the request failed", infer_response=head)


def logprobs_json(tokens: Sequence[TokenLogprob]) -> str:
    """As the vLLM backend writes them: for each token an object by token id, the sampled one and the likeliest.

    `rank` counts from 1; it is null for a sampled token that is not among the likeliest that were asked for.
    """
    return json.dumps([_by_id(token) for token in tokens])


def _by_id(token: TokenLogprob) -> dict[str, Any]:
    ranks = {entry.token_id: rank for rank, entry in enumerate(token.top, 1)}
    entries = (token, *(entry for entry in token.top if entry.token_id != token.token_id))
    return {
        str(entry.token_id): {
            "logprob": entry.logprob,
            "rank": ranks.get(entry.token_id),
            "decoded_token": entry.text,
        }
        for entry in entries
    }
