"""What a client sends and receives, as plain values. Knows neither the wire nor how it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwire.errors import Cancelled, DeadlineExceeded, Internal, TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.parsed import Parsed, ToolCall
from tokenwire.requests import FinishReason, Terminal, TokenLogprob

Prompt = str | Sequence[int]
"""A text, or token ids used as they are."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """ "system", "user", "assistant", "tool", or what the model's template knows."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the assistant made."""
    tool_call_id: str = ""
    """Which call a message of a tool answers."""
    reasoning: str = ""
    """The assistant's reasoning, for templates that take it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. The caller runs it; a message of role "tool" says what it returned."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON schema of its arguments; None: it takes none."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one output; nothing is sent twice."""

    text: str
    """May be empty while a character or a possible stop string is incomplete."""
    num_tokens: int
    """Tokens that stand behind it."""
    token_ids: tuple[int, ...] = ()
    """Those tokens, if `return_token_ids` was asked for."""
    index: int = 0
    """Which prompt."""
    choice: int = 0
    """Which of `num_choices`."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token, if `logprobs` was asked for."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """The prompt's next tokens, from its second on, if `prompt_logprobs` was asked for; before the first text."""
    reasoning: str = ""
    """What the model thought before this text, where the server splits it from the text."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Pieces of tool calls behind this text: id and name with the first of each call, then arguments."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of one output: why it ended, what it used, where the time went."""

    terminal: Terminal
    index: int = 0
    choice: int = 0


Event = TextDelta | Finished


@dataclass(frozen=True, slots=True)
class Output:
    """One whole output."""

    text: str
    token_ids: tuple[int, ...]
    """Empty unless `return_token_ids` was asked for."""
    terminal: Terminal
    index: int = 0
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token, if `logprobs` was asked for."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """One per token of the prompt but the first, if `prompt_logprobs` was asked for."""
    reasoning: str = ""
    """What the model thought, where the server splits it from the text."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls that the model made, whole."""

    @property
    def message(self) -> Message:
        """The answer as a message, to go on with the conversation."""
        return Message("assistant", self.text, self.tool_calls, reasoning=self.reasoning)

    @property
    def error(self) -> TokenwireError | None:
        """Why this output is not whole; None when it ended by itself (a stop or its length)."""
        match self.terminal.reason:
            case FinishReason.ERROR:
                return self.terminal.error or Internal("the output ended with an error that was not named")
            case FinishReason.DEADLINE:
                tokens = self.terminal.usage.completion_tokens
                return DeadlineExceeded(f"the time ran out after {tokens} tokens; what came until then was streamed")
            case FinishReason.CANCELLED:
                return Cancelled("the request was cancelled")
        return None


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoded text."""

    token_ids: tuple[int, ...]
    starts: tuple[int, ...] = ()
    """Where each token starts in the text, in Unicode characters, if offsets were asked for."""
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A conversation as the model reads it."""

    text: str
    token_ids: tuple[int, ...] = ()
    """Empty unless they were asked for."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What it takes to tokenize as the server does."""

    files: Mapping[str, bytes]
    """By name, which may begin with a folder."""
    vocabulary_fingerprint: str
    """Equal where token ids mean the same."""

    def save(self, folder: Path) -> None:
        """Write them into a folder, which is made where it is missing."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that can be asked for."""

    name: str
    max_context_tokens: int
    """Most positions of one sequence, prompt and output together."""
    vocab_size: int
    vocabulary_fingerprint: str
    """Equal where token ids mean the same."""
    capabilities: tuple[str, ...] = ()
    """What it can be asked for: "generate", "embed"; empty where the server does not say."""
    embedding_size: int = 0
    """Values of an embedding; 0 where it gives none."""


class OutputCollector:
    """Joins events into outputs and knows how many are still open."""

    def __init__(self, num_outputs: int) -> None:
        self.num_open = num_outputs
        self._texts: dict[tuple[int, int], list[str]] = {}
        self._token_ids: dict[tuple[int, int], list[int]] = {}
        self._logprobs: dict[tuple[int, int], SequenceLogprobs] = {}
        self._parsed: dict[tuple[int, int], Parsed] = {}
        self._terminals: dict[tuple[int, int], Terminal] = {}

    def add(self, event: Event) -> None:
        """Take the next event."""
        key = (event.index, event.choice)
        if isinstance(event, Finished):
            self._terminals[key] = event.terminal
            self.num_open -= 1
        else:
            self._texts.setdefault(key, []).append(event.text)
            self._token_ids.setdefault(key, []).extend(event.token_ids)
            if event.logprobs or event.prompt_logprobs:
                more = SequenceLogprobs(list(event.logprobs), list(event.prompt_logprobs))
                self._logprobs.setdefault(key, SequenceLogprobs()).extend(more)
            if event.reasoning or event.tool_calls:
                self._parsed.setdefault(key, Parsed()).extend(Parsed(event.reasoning, list(event.tool_calls)))

    def outputs(self) -> list[Output]:
        """Every finished output, by prompt and choice."""
        return [self._output(key, self._terminals[key]) for key in sorted(self._terminals)]

    def _output(self, key: tuple[int, int], terminal: Terminal) -> Output:
        text, token_ids = "".join(self._texts.get(key, ())), tuple(self._token_ids.get(key, ()))
        logprobs = self._logprobs.get(key, SequenceLogprobs())
        parsed = self._parsed.get(key, Parsed())
        return Output(
            text,
            token_ids,
            terminal,
            *key,
            tuple(logprobs.tokens),
            tuple(logprobs.prompt),
            parsed.reasoning,
            tuple(parsed.tool_calls),
        )
