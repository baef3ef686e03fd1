"""What OpenAI's two generating paths share: chunks with everything but the text prepared, and the collected answer.

Per text: one JSON-escaped string between a prefix and a suffix made once per output; a suffix of its own where
log-probabilities are asked for.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.backends import Backends
from gateway.http.calls import HttpCall
from gateway.http.echoes import Echo
from gateway.http.errors import error_of, renamed
from gateway.http.openai_usage import UsageTotal, finish_reason, usage_object
from gateway.http.sse import DONE, json_text
from gateway.streams import Event
from tokenwire.errors import TokenwireError
from tokenwire.parsed import Parsed, joined_parsed
from tokenwire.requests import FinishReason, TokenLogprob, new_id

SERVICE_TIER = "default"
"""The one tier that every request is served in."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How one path writes its chunks."""

    before_text: str
    """Between the choice's index and the text: `'"delta":{"content":'`."""
    after_text: str
    """Behind the text: `'}'`, or nothing."""
    first: str | None
    """A choice's first, empty payload: `'"delta":{"role":"assistant",…}'`; None where there is none."""
    last: str
    """The payload beside finish_reason: `'"delta":{}'`."""
    logprobs: Callable[[Sequence[TokenLogprob]], dict[str, Any]]
    """What `logprobs` says of some tokens."""
    before: Callable[[Parsed], str | None] | None = None
    """The payload of what is split from the text and stands before it; None: nothing is split."""
    behind: Callable[[Parsed], str | None] | None = None
    """The same of what stands behind it."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What identifies one answer, in each of its chunks."""

    id: str
    object: str
    model: str
    system_fingerprint: str | None = None
    service_tier: str | None = None
    """"default" where the request said something of tiers."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time."""

    def fields(self) -> dict[str, Any]:
        """As the beginning of an answer, or of a chunk of it, has them."""
        head = {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }
        return head if self.service_tier is None else {**head, "service_tier": self.service_tier}


def answer_head(backends: Backends, kind: str, id_prefix: str, model: str, service_tier: str | None) -> AnswerHead:
    """The head of a new answer. `kind`: its `object`; `model`, `service_tier`: as the request has them."""
    return AnswerHead(
        id=new_id(f"{id_prefix}-", 24),
        object=kind,
        model=model or backends.default_model,
        system_fingerprint=backends.system_fingerprint(model),
        service_tier=None if service_tier is None else SERVICE_TIER,
    )


class OpenAIChunks:
    """Writes one streamed answer."""

    def __init__(
        self,
        shape: ChunkShape,
        head: AnswerHead,
        *,
        num_prompts: int,
        num_choices: int,
        include_usage: bool,
        echoes: Sequence[Echo] = (),
        with_logprobs: bool = False,
    ) -> None:
        """`echoes`: what each prompt's outputs begin with; none where nothing is repeated."""
        self._shape = shape
        self._echoes = echoes
        self._with_logprobs = with_logprobs
        self._of_prompts: dict[int, list[TokenLogprob]] = {}
        """Of outputs that have not begun: what is known of their prompt's tokens."""
        self._num_prompts = num_prompts
        self._num_choices = num_choices
        self._include_usage = include_usage
        self._total = UsageTotal()
        self._head = f"data: {json_text(head.fields())[:-1]},"
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self._begun: dict[int, str] = {}
        """Prefix of each output that has begun, by index."""
        self._with_calls: set[int] = set()
        """Outputs that called a function."""
        self._suffix = self._suffix_of("null")

    def render(self, events: Sequence[Event]) -> tuple[str, TokenwireError | None]:
        """Chunks of these events, up to the first output that failed, and its error."""
        pieces: list[str] = []
        for event in events:
            index = event.prompt * self._num_choices + event.choice
            prefix = self._begun.get(index)
            error = None if event.terminal is None else _error_at(event, self._num_prompts)
            if prefix is None:
                if error is not None and not event.text and event.parsed is None:
                    return "".join(pieces), error
                prefix = (
                    self._begin(index, pieces) if not self._echoes else self._begin_with_prompt(index, event, pieces)
                )
                if prefix is None:
                    continue
            if event.parsed is not None:
                self._add(index, pieces, self._shape.before, event.parsed)
            if event.logprobs is not None and event.logprobs.tokens:
                logprobs = json_text(self._shape.logprobs(self._placed(event.logprobs.tokens, event.prompt)))
                pieces.append(prefix + json_text(event.text) + self._suffix_of(logprobs))
            elif event.text:
                pieces.append(prefix + json_text(event.text) + self._suffix)
            if event.parsed is not None and event.parsed.tool_calls:
                self._add(index, pieces, self._shape.behind, event.parsed)
                self._with_calls.add(index)
            if error is not None:
                return "".join(pieces), error
            if event.terminal is not None:
                self._finish(index, pieces, event.terminal.reason)
                self._total.add(event)
        return "".join(pieces), None

    def around_text(self, prompt: int, choice: int) -> tuple[str, str] | None:
        """What stands around a text alone of this output; None before it has begun."""
        prefix = self._begun.get(prompt * self._num_choices + choice)
        return None if prefix is None else (prefix, self._suffix)

    def end(self) -> str:
        """The usage, when asked for, and the end mark."""
        if not self._include_usage:
            return DONE
        return f'{self._head}"choices":[],"usage":{json_text(usage_object(self._total.usage))}}}\n\n{DONE}'

    def _suffix_of(self, logprobs: str) -> str:
        return f'{self._shape.after_text},"logprobs":{logprobs},"finish_reason":null}}]{self._tail}'

    def _begin(self, index: int, pieces: list[str]) -> str:
        prefix = self._begun[index] = f'{self._head}"choices":[{{"index":{index},{self._shape.before_text}'
        if self._shape.first is not None:
            choice = f'"choices":[{{"index":{index},{self._shape.first},"logprobs":null,"finish_reason":null}}]'
            pieces.append(f"{self._head}{choice}{self._tail}")
        return prefix

    def _begin_with_prompt(self, index: int, event: Event, pieces: list[str]) -> str | None:
        """Begin with a chunk of the prompt, once all is there that is known of it; None until then."""
        known = self._of_prompts.setdefault(index, [])
        if event.logprobs is not None:
            known += event.logprobs.prompt
        if not event.text and not (event.logprobs and event.logprobs.tokens) and event.terminal is None:
            return None
        del self._of_prompts[index]
        prefix, echo = self._begin(index, pieces), self._echoes[event.prompt]
        logprobs = json_text(echo.logprobs(known)) if self._with_logprobs else "null"
        pieces.append(prefix + json_text(echo.text) + self._suffix_of(logprobs))
        return prefix

    def _placed(self, tokens: list[TokenLogprob], prompt: int) -> list[TokenLogprob]:
        """Tokens of an output with their places in the whole text."""
        return self._echoes[prompt].behind(tokens) if self._echoes else tokens

    def _add(
        self, index: int, pieces: list[str], payload_of: Callable[[Parsed], str | None] | None, parsed: Parsed
    ) -> None:
        """A chunk of what was split from the text, where there is some."""
        payload = payload_of(parsed) if payload_of is not None else None
        if payload is not None:
            choice = f'"choices":[{{"index":{index},{payload},"logprobs":null,"finish_reason":null}}]'
            pieces.append(f"{self._head}{choice}{self._tail}")

    def _finish(self, index: int, pieces: list[str], reason: FinishReason) -> None:
        word = finish_reason(reason, index in self._with_calls)
        payload = f'{self._shape.last},"logprobs":null,"finish_reason":"{word}"'
        choice = f'"choices":[{{"index":{index},{payload}}}]'
        pieces.append(f"{self._head}{choice}{self._tail}")


def _error_at(event: Event, num_prompts: int) -> TokenwireError | None:
    """The error that ended this output; with several prompts its fields say which one."""
    error = error_of(event.terminal) if event.terminal is not None else None
    return error if error is None or num_prompts == 1 else renamed(error, f"prompt[{event.prompt}]")


@dataclass(slots=True)
class CollectedOutput:
    """One whole output."""

    texts: list[str] = field(default_factory=list)
    """Its text in pieces."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    parsed: Parsed | None = None
    """What was split from the text."""
    reason: str = ""
    """OpenAI's finish_reason."""


async def collect(call: HttpCall, num_prompts: int, num_choices: int) -> tuple[list[CollectedOutput], dict[str, Any]]:
    """Each output in order, and the usage. Raises the first error of an output."""
    outputs = [CollectedOutput() for _ in range(num_prompts * num_choices)]
    total = UsageTotal()
    while events := await call.next_events():
        for event in events:
            output = outputs[event.prompt * num_choices + event.choice]
            output.texts.append(event.text)
            if event.logprobs is not None:
                output.logprobs += event.logprobs.tokens
                output.prompt_logprobs += event.logprobs.prompt
            if event.parsed is not None:
                output.parsed = joined_parsed(output.parsed, event.parsed)
            if event.terminal is not None:
                error = _error_at(event, num_prompts)
                if error is not None:
                    raise error
                with_calls = output.parsed is not None and bool(output.parsed.tool_calls)
                output.reason = finish_reason(event.terminal.reason, with_calls)
                total.add(event)
    return outputs, usage_object(total.usage)
