"""What one Generate call has to send: the sink of its sequences, and the messages made of what they gave.

A stream has chunks of what is new, then each choice's complete message; a call that does not stream has the complete
messages alone. What comes while the peer is slow goes with the next chunk.
"""

import asyncio
from collections.abc import Callable, Iterable

from smg_grpc_proto import vllm_engine_pb2 as pb

from model_svc.vllm_engine.stop_texts import StopTexts
from tokenwire.errors import DeadlineExceeded, TokenwireError
from tokenwire.requests import FinishReason, Terminal, TokenLogprob

FINISH_REASONS = {
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.DEADLINE: "abort",
    FinishReason.ERROR: "error",
}
"""In the protocol's words."""


class ChoiceAnswer:
    """One choice."""

    def __init__(self, index: int, stop_texts: StopTexts | None) -> None:
        self.index = index
        self.stop_texts = stop_texts
        self.token_ids: list[int] = []
        self.num_sent = 0
        """Of the token ids."""
        self.logprobs: list[TokenLogprob] = []
        """Those that wait to be sent."""
        self.prompt_logprobs: list[TokenLogprob] = []
        self.matched: str | None = None
        """The stop string that ended it here; what the engine still gives is not wanted."""
        self.terminal: Terminal | None = None


class GenerateAnswers:
    """The sink of one request's sequences; their handles are the choices."""

    def __init__(
        self,
        prompt_ids: list[int],
        choices: list[ChoiceAnswer],
        *,
        stream: bool,
        prompt_logprobs: bool,
        stop_token_ids: Iterable[int],
        on_matched: Callable[[int], None],
    ) -> None:
        """`stop_token_ids`: the request's own, which the peer is told of; `on_matched` ends a choice's sequence."""
        self._prompt_ids = prompt_ids
        self._choices = choices
        self._stream = stream
        self._wants_prompt_logprobs = prompt_logprobs
        self._stop_token_ids = frozenset(stop_token_ids)
        self._on_matched = on_matched
        self._wake = asyncio.Event()
        self._num_open = len(choices)
        self._touched: dict[int, None] = {}

    @property
    def over(self) -> bool:
        """Whether every choice has ended and been taken."""
        return self._num_open == 0 and not self._touched

    @property
    def failure(self) -> TokenwireError | None:
        """The call's error, once every choice has ended with one."""
        errors = [_error_of(choice) for choice in self._choices]
        return errors[0] if all(errors) else None

    async def take(self) -> list[pb.GenerateResponse]:
        """Wait for something to send, and take all there is."""
        await self._wake.wait()
        self._wake.clear()
        touched, self._touched = self._touched, {}
        if self._num_open == 0 and self.failure is not None:
            return []
        responses: list[pb.GenerateResponse] = []
        for index in touched:
            choice = self._choices[index]
            if self._stream and choice.num_sent < len(choice.token_ids):
                responses.append(pb.GenerateResponse(chunk=self._chunk(choice)))
            if choice.terminal is not None:
                responses.append(pb.GenerateResponse(complete=self._complete(choice, choice.terminal)))
        return responses

    def on_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        """One more token of a choice."""
        choice = self._choices[handle]
        if choice.matched is not None:
            return
        choice.token_ids.append(token_id)
        if logprob is not None:
            choice.logprobs.append(logprob)
        if choice.stop_texts is not None and (matched := choice.stop_texts.push(token_id)) is not None:
            choice.matched = matched
            self._on_matched(handle)
        self._touched[handle] = None

    def on_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        """Log-probabilities of the prompt's next tokens."""
        self._choices[handle].prompt_logprobs += logprobs

    def on_end(self, handle: int, terminal: Terminal) -> None:
        """A choice has ended."""
        self._num_open -= 1
        self._choices[handle].terminal = terminal
        self._touched[handle] = None

    def end_all(self, terminal: Terminal) -> None:
        """Every choice has ended before it began."""
        for choice in self._choices:
            self.on_end(choice.index, terminal)
        self.flush()

    def flush(self) -> None:
        """A step is complete. A call that does not stream waits for its end."""
        if self._touched and (self._stream or self._num_open == 0):
            self._wake.set()

    def _chunk(self, choice: ChoiceAnswer) -> pb.GenerateStreamChunk:
        chunk = pb.GenerateStreamChunk(
            token_ids=choice.token_ids[choice.num_sent :],
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=len(choice.token_ids),
            index=choice.index,
        )
        if choice.num_sent == 0 and self._wants_prompt_logprobs:
            chunk.input_logprobs.CopyFrom(input_logprobs(self._prompt_ids, choice.prompt_logprobs))
        if choice.logprobs:
            chunk.output_logprobs.CopyFrom(output_logprobs(choice.logprobs))
            choice.logprobs.clear()
        choice.num_sent = len(choice.token_ids)
        return chunk

    def _complete(self, choice: ChoiceAnswer, terminal: Terminal) -> pb.GenerateComplete:
        complete = pb.GenerateComplete(
            output_ids=choice.token_ids,
            finish_reason="stop" if choice.matched is not None else FINISH_REASONS[terminal.reason],
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=len(choice.token_ids),
            cached_tokens=terminal.usage.cached_tokens,
            index=choice.index,
        )
        if choice.matched is not None:
            complete.matched_stop_str = choice.matched
        elif terminal.stop_token_id in self._stop_token_ids:
            complete.matched_token_id = terminal.stop_token_id or 0
        if choice.logprobs:
            complete.output_logprobs.CopyFrom(output_logprobs(choice.logprobs))
        if self._wants_prompt_logprobs and choice.num_sent == 0:
            complete.input_logprobs.CopyFrom(input_logprobs(self._prompt_ids, choice.prompt_logprobs))
        return complete


def output_logprobs(logprobs: Iterable[TokenLogprob]) -> pb.OutputLogProbs:
    """Of output tokens: the sampled ones, and beside each the likeliest."""
    message = pb.OutputLogProbs()
    for logprob in logprobs:
        message.token_logprobs.append(logprob.logprob)
        message.token_ids.append(logprob.token_id)
        _add_top(message.top_logprobs.add(), logprob)
    return message


def input_logprobs(prompt_ids: list[int], logprobs: list[TokenLogprob]) -> pb.InputLogProbs:
    """Of the prompt's tokens; the first has none."""
    message = pb.InputLogProbs(token_ids=prompt_ids)
    message.token_logprobs.add()
    message.top_logprobs.add()
    for logprob in logprobs:
        message.token_logprobs.add(value=logprob.logprob)
        _add_top(message.top_logprobs.add(), logprob)
    return message


def _add_top(message: pb.TopLogProbs, logprob: TokenLogprob) -> None:
    message.values.extend(entry.logprob for entry in logprob.top)
    message.token_ids.extend(entry.token_id for entry in logprob.top)


def _error_of(choice: ChoiceAnswer) -> TokenwireError | None:
    terminal = choice.terminal
    if terminal is None or choice.matched is not None:
        return None
    if terminal.reason is FinishReason.DEADLINE:
        return DeadlineExceeded(f"the time given ran out after {terminal.usage.completion_tokens} tokens")
    return terminal.error
