"""What OpenAI's two generating paths share: chunks with everything but the text prepared, and the collected answer.

Per text: one JSON-escaped string between a prefix and a suffix made once per output.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.http.calls import HttpCall
from gateway.http.errors import error_of, renamed
from gateway.http.openai_usage import FINISH_REASONS, UsageTotal, usage_object
from gateway.http.sse import DONE, json_text
from gateway.streams import Event
from tokenwire.errors import TokenwireError
from tokenwire.requests import FinishReason


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How one path writes its chunks."""

    object: str
    """`"chat.completion.chunk"` or `"text_completion"`."""
    before_text: str
    """Between the choice's index and the text: `'"delta":{"content":'`."""
    after_text: str
    """Behind the text: `'}'`, or nothing."""
    first: str | None
    """A choice's first, empty payload: `'"delta":{"role":"assistant",…}'`; None where there is none."""
    last: str
    """The payload beside finish_reason: `'"delta":{}'`."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What identifies one answer, in each of its chunks."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time."""


class OpenAIChunks:
    """Writes one streamed answer."""

    def __init__(
        self, shape: ChunkShape, head: AnswerHead, *, num_prompts: int, num_choices: int, include_usage: bool
    ) -> None:
        self._shape = shape
        self._num_prompts = num_prompts
        self._num_choices = num_choices
        self._include_usage = include_usage
        self._total = UsageTotal()
        self._head = (
            f'data: {{"id":"{head.id}","object":"{shape.object}","created":{head.created},'
            f'"model":{json_text(head.model)},'
        )
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self._begun: dict[int, str] = {}
        """Prefix of each output that has begun, by index."""
        self._suffix = f'{shape.after_text},"logprobs":null,"finish_reason":null}}]{self._tail}'

    def render(self, events: Sequence[Event]) -> tuple[str, TokenwireError | None]:
        """Chunks of these events, up to the first output that failed, and its error."""
        pieces: list[str] = []
        for event in events:
            index = event.prompt * self._num_choices + event.choice
            prefix = self._begun.get(index)
            error = _error_at(event, self._num_prompts)
            if prefix is None:
                if error is not None and not event.text:
                    return "".join(pieces), error
                prefix = self._begin(index, pieces)
            if event.text:
                pieces.append(prefix + json_text(event.text) + self._suffix)
            if error is not None:
                return "".join(pieces), error
            if event.terminal is not None:
                self._finish(index, pieces, event.terminal.reason)
                self._total.add(event)
        return "".join(pieces), None

    def end(self) -> str:
        """The usage, when asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return f'{self._head}"choices":[],"usage":{json_text(usage_object(self._total.usage))}}}\n\n{DONE}'

    def _begin(self, index: int, pieces: list[str]) -> str:
        prefix = self._begun[index] = f'{self._head}"choices":[{{"index":{index},{self._shape.before_text}'
        if self._shape.first is not None:
            choice = f'"choices":[{{"index":{index},{self._shape.first},"logprobs":null,"finish_reason":null}}]'
            pieces.append(f"{self._head}{choice}{self._tail}")
        return prefix

    def _finish(self, index: int, pieces: list[str], reason: FinishReason) -> None:
        payload = f'{self._shape.last},"logprobs":null,"finish_reason":"{FINISH_REASONS[reason]}"'
        choice = f'"choices":[{{"index":{index},{payload}}}]'
        pieces.append(f"{self._head}{choice}{self._tail}")


def _error_at(event: Event, num_prompts: int) -> TokenwireError | None:
    """The error that ended this output; with several prompts its fields say which one."""
    error = error_of(event.terminal) if event.terminal is not None else None
    return error if error is None or num_prompts == 1 else renamed(error, f"prompt[{event.prompt}]")


async def collect(call: HttpCall, num_prompts: int, num_choices: int) -> tuple[list[str], list[str], dict[str, Any]]:
    """Text and finish_reason of each output in order, and the usage. Raises the first error of an output."""
    num_outputs = num_prompts * num_choices
    texts: list[list[str]] = [[] for _ in range(num_outputs)]
    reasons = [""] * num_outputs
    total = UsageTotal()
    while events := await call.next_events():
        for event in events:
            index = event.prompt * num_choices + event.choice
            texts[index].append(event.text)
            if event.terminal is not None:
                error = _error_at(event, num_prompts)
                if error is not None:
                    raise error
                reasons[index] = FINISH_REASONS[event.terminal.reason]
                total.add(event)
    return ["".join(pieces) for pieces in texts], reasons, usage_object(total.usage)
