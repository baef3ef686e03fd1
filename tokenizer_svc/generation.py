"""The text of one choice as a state machine: tokens and the model tier's end in, text and its own terminal event out.

Knows detokenizing, stop strings, the texts of log-probabilities, and that an answer may be split into content and what
else is in it. Does not know the wire, time, or which model tier the tokens come from.

Stop strings are looked for in the text that comes after the first `min_tokens` tokens, as if the text began there: one
that begins before is no match. A character belongs to the token that completes it.
They are looked for in the raw text, before it is split: markers, reasoning and calls included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizer_svc.answers import AnswerSplitter
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.logprob_texts import LogprobTexts
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenwire.errors import Internal, TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.parsed import Parsed
from tokenwire.requests import FinishReason, Terminal, TokenLogprob, Usage


@dataclass(slots=True)
class TextDelta:
    """New text, and how many of the tokens just pushed stand behind it (all, or those up to a stop string's end)."""

    text: str
    num_tokens: int
    stopped: bool = False
    """Whether a stop string was met."""
    logprobs: SequenceLogprobs | None = None
    """One for each of these tokens, and those of the prompt that came along; None where none are wanted."""
    parsed: Parsed | None = None
    """Reasoning and tool calls that were split from the text."""


class ChoiceText:
    """One choice from its first token to its terminal event.

    After a stop string, or the one tool call that was wanted (`stop_string` is set then), further tokens are nothing,
    and whatever the model tier says of the end, the terminal is STOP_STRING with the tokens counted up to the one that
    completed the match.
    """

    __slots__ = (
        "_detokenizer", "_logprob_texts", "_matcher", "_min_tokens", "_splitter", "is_plain", "num_prompt_tokens",
        "num_reasoning_tokens", "num_tokens", "stop_string",
    )  # fmt: skip

    def __init__(
        self,
        detokenizer: Detokenizer,
        matcher: StopStringMatcher | None,
        num_prompt_tokens: int,
        *,
        min_tokens: int = 0,
        logprob_texts: LogprobTexts | None = None,
        splitter: AnswerSplitter | None = None,
    ) -> None:
        """`logprob_texts`: None where no log-probabilities are wanted. `splitter`: None where all text is content."""
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._min_tokens = min_tokens
        self._logprob_texts = logprob_texts
        self._splitter = splitter
        self.is_plain = matcher is None and logprob_texts is None and splitter is None
        """Whether tokens become text and nothing else: `push_plain` will do."""
        self.num_prompt_tokens = num_prompt_tokens
        self.num_tokens = 0
        """Output tokens so far; those after a stop string do not count."""
        self.num_reasoning_tokens = 0
        """Of those, tokens of reasoning, from the one that completes its opening tag."""
        self.stop_string: str | None = None

    @property
    def num_holds(self) -> int:
        """How often text was held back for a stop string."""
        return self._matcher.num_holds if self._matcher is not None else 0

    def push(self, token_ids: Sequence[int], logprobs: SequenceLogprobs | None = None) -> TextDelta:
        """New tokens, and what came along with them. Call it no more once `stop_string` is set.

        Raises Internal when log-probabilities are wanted and there is not one for each token.
        """
        if self._logprob_texts is not None:
            return self._push_with_logprobs(self._logprob_texts, token_ids, logprobs or SequenceLogprobs())
        if self.is_plain:
            return TextDelta(self.push_plain(token_ids), len(token_ids))
        parts: list[str] = []
        for token_id in token_ids:
            parts.append(self._push_one(token_id))
            if self.stop_string is not None:
                break
        return TextDelta("".join(parts), len(parts), self.stop_string is not None, parsed=self.take_parsed())

    def push_plain(self, token_ids: Sequence[int]) -> str:
        """As `push`, of a choice that `is_plain`: the text of all these tokens."""
        self.num_tokens += len(token_ids)
        return self._detokenizer.push(token_ids)

    @property
    def whole_texts(self) -> Sequence[str]:
        """As `Detokenizer.whole_texts`: for these tokens of a plain choice `skip` will do."""
        return self._detokenizer.whole_texts if self.is_plain else ()

    def skip(self, num_tokens: int) -> None:
        """So many tokens came whose text was taken from `whole_texts`."""
        self.num_tokens += num_tokens

    def _push_with_logprobs(
        self, texts: LogprobTexts, token_ids: Sequence[int], logprobs: SequenceLogprobs
    ) -> TextDelta:
        if texts.every_token and len(logprobs.tokens) != len(token_ids):
            raise Internal(f"{len(logprobs.tokens)} log-probabilities came for {len(token_ids)} tokens")
        prompt = texts.of_prompt(logprobs.prompt)
        parts: list[str] = []
        tokens: list[TokenLogprob] = []
        for index, token_id in enumerate(token_ids):
            if texts.every_token:
                tokens.append(texts.of_output(logprobs.tokens[index], self._detokenizer.position_of(token_id)))
            parts.append(self._push_one(token_id))
            if self.stop_string is not None:
                break
        found = SequenceLogprobs(tokens, prompt) if tokens or prompt else None
        return TextDelta("".join(parts), len(parts), self.stop_string is not None, found, self.take_parsed())

    def take_parsed(self) -> Parsed | None:
        """What was split from the text since the last time; after `finish` and `end`, of what was held back."""
        return None if self._splitter is None else self._splitter.take()

    def finish(self, below: Terminal) -> tuple[str, Terminal]:
        """The model tier's terminal event. Returns what was held back, and the choice's own terminal."""
        text = self._flush()
        if self._splitter is not None:
            text = self._splitter.finish(text)
        if self.stop_string is None:
            usage = replace(below.usage, reasoning_tokens=self.num_reasoning_tokens)
            return text, below if self._splitter is None else replace(below, usage=usage)
        prompt_tokens = below.usage.prompt_tokens or self.num_prompt_tokens
        usage = Usage(prompt_tokens, below.usage.cached_tokens, self.num_tokens, self.num_reasoning_tokens)
        terminal = Terminal(
            FinishReason.STOP_STRING, usage, stop_string=self.stop_string, model_timings=below.model_timings
        )
        return text, terminal

    def end(self, reason: FinishReason, error: TokenwireError | None = None) -> tuple[str, Terminal]:
        """The end without a terminal event from the model tier, which was lost or did not answer in time."""
        usage = Usage(self.num_prompt_tokens, 0, self.num_tokens)
        return self.finish(Terminal(reason, usage, error=error))

    def _push_one(self, token_id: int) -> str:
        """The text that one token lets go. Sets `stop_string` when it completes one."""
        text = self._detokenizer.push((token_id,))
        self.num_tokens += 1
        if self._matcher is not None and self.num_tokens > self._min_tokens:
            text, self.stop_string = self._matcher.push(text)
        if self._splitter is not None:
            reasoned = self._splitter.in_reasoning
            text = self._splitter.push(text)
            self.num_reasoning_tokens += reasoned or self._splitter.in_reasoning
            if self._splitter.finished and self.stop_string is None:
                self.stop_string = self._splitter.closing
        return text

    def _flush(self) -> str:
        """What was held back. Bytes that are no whole character can complete a stop string, as any text."""
        if self.stop_string is not None:
            return ""
        text = self._detokenizer.flush()
        if self._matcher is None or self.num_tokens <= self._min_tokens:
            return text
        text, self.stop_string = self._matcher.push(text)
        return text if self.stop_string is not None else text + self._matcher.flush()
