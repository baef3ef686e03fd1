"""The text of one choice as a state machine: tokens and the model tier's end in, text and its own terminal event out.

Knows detokenizing and stop strings. Does not know the wire, time, or which model tier the tokens come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenwire.errors import TokenwireError
from tokenwire.requests import FinishReason, Terminal, Usage


@dataclass(slots=True)
class TextDelta:
    """New text, and how many of the tokens just pushed stand behind it (all, or those up to a stop string's end)."""

    text: str
    num_tokens: int
    stopped: bool = False
    """Whether a stop string was met."""


class ChoiceText:
    """One choice from its first token to its terminal event.

    After a stop string (`stop_string` is set then) further tokens are nothing, and whatever the model tier says of the
    end, the terminal is STOP_STRING with the tokens counted up to the one that completed the match.
    """

    __slots__ = ("_detokenizer", "_matcher", "num_prompt_tokens", "num_tokens", "stop_string")

    def __init__(self, detokenizer: Detokenizer, matcher: StopStringMatcher | None, num_prompt_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._matcher = matcher
        self.num_prompt_tokens = num_prompt_tokens
        self.num_tokens = 0
        """Output tokens so far; those after a stop string do not count."""
        self.stop_string: str | None = None

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """New tokens. Call it no more once `stop_string` is set."""
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            return TextDelta(self._detokenizer.push(token_ids), len(token_ids))
        parts: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            text, self.stop_string = self._matcher.push(self._detokenizer.push((token_id,)))
            parts.append(text)
            if self.stop_string is not None:
                self.num_tokens += count
                return TextDelta("".join(parts), count, stopped=True)
        self.num_tokens += len(token_ids)
        return TextDelta("".join(parts), len(token_ids))

    def finish(self, below: Terminal) -> tuple[str, Terminal]:
        """The model tier's terminal event. Returns what was held back, and the choice's own terminal."""
        text = self._flush()
        if self.stop_string is None:
            return text, below
        prompt_tokens = below.usage.prompt_tokens or self.num_prompt_tokens
        usage = Usage(prompt_tokens, below.usage.cached_tokens, self.num_tokens)
        terminal = Terminal(
            FinishReason.STOP_STRING, usage, stop_string=self.stop_string, model_timings=below.model_timings
        )
        return text, terminal

    def end(self, reason: FinishReason, error: TokenwireError | None = None) -> tuple[str, Terminal]:
        """The end without a terminal event from the model tier, which was lost or did not answer in time."""
        usage = Usage(self.num_prompt_tokens, 0, self.num_tokens)
        return self.finish(Terminal(reason, usage, error=error))

    def _flush(self) -> str:
        """What was held back. Bytes that are no whole character can complete a stop string, as any text."""
        if self.stop_string is not None:
            return ""
        text = self._detokenizer.flush()
        if self._matcher is None:
            return text
        text, self.stop_string = self._matcher.push(text)
        return text if self.stop_string is not None else text + self._matcher.flush()
