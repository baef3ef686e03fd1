"""One choice of a request: what model tiers say of it, made into text, and what is needed to go on elsewhere.

Keeps the tokens so far, so that another model tier can continue after them while the text, with whatever it holds back,
stays as it is. Does not know which model tier it is at, nor when a lost one is replaced.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.part import Part
from tokenwire.errors import TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.parsed import Parsed
from tokenwire.requests import CancelReason, FinishReason, Terminal


class ChoiceOwner(Protocol):
    """The request of a choice."""

    def on_text(
        self,
        choice: "Choice",
        text: str,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text, empty while a character is incomplete, the tokens behind it, and what came along."""

    def take_over(self, choice: "Choice", error: TokenwireError, *, lost: bool) -> bool:
        """A model tier gave the choice up. Returns whether that is dealt with: it goes on elsewhere, or has ended."""

    def end_choice(self, choice: "Choice", text: str, terminal: Terminal) -> None:
        """The one end of a choice: the rest of its text, and its terminal event."""

    def end_lost(self, choice: "Choice", why: TokenwireError) -> None:
        """The end of a choice whose model tier was lost for good."""

    def fail_choice(self, choice: "Choice", error: TokenwireError) -> None:
        """The end of a choice whose text cannot be asked any more."""


class Choice:
    """Receives for one choice, from one model tier after the other."""

    __slots__ = (
        "_num_repeated", "_owner", "_whole_texts", "cancelled", "direct", "ended", "handle", "index",
        "num_prompt_logprobs", "num_refusals", "num_resumes", "part", "text", "token_ids",
    )  # fmt: skip

    def __init__(self, owner: ChoiceOwner, index: int, handle: int) -> None:
        self.index = index
        """Which of its request's choices."""
        self.handle = handle
        self.text: ChoiceText | None = None
        """None until the prompt is encoded."""
        self.token_ids: list[int] = []
        """The output so far."""
        self.num_prompt_logprobs = 0
        """Of the prompt's log-probabilities, how many were passed on."""
        self.part: Part | None = None
        """What it is at a model tier with, or on its way to one; None between one and the next."""
        self.cancelled: CancelReason | None = None
        """Set once the client takes it back."""
        self.num_resumes = 0
        self.num_refusals = 0
        self.ended = False
        """Its terminal event was sent."""
        self.direct: Callable[[int, str, int], None] | None = None
        """Takes handle, text and number of tokens past the owner, where the owner need not see them."""
        self._owner = owner
        self._whole_texts: Sequence[str] = ()
        """By id: the next token's text; empty where the token has to be pushed."""
        self._num_repeated = 0
        """How many of the prompt's log-probabilities come once more."""

    @property
    def begun(self) -> bool:
        """Whether anything of it was passed on, so that it cannot begin anew."""
        return bool(self.token_ids) or self.num_prompt_logprobs > 0

    def goes_down(self, *, prompt_logprobs: bool) -> None:
        """It is submitted, asking for the prompt's log-probabilities, all of them, or not."""
        self._num_repeated = self.num_prompt_logprobs if prompt_logprobs else 0

    def end(self) -> None:
        """Its terminal event is sent: nothing more is taken."""
        self.ended = True
        self._whole_texts = ()

    def count(self) -> int:
        """Output tokens so far; those after a stop string do not count."""
        if self.text is None:
            return 0
        if self.text.is_plain:
            self.text.skip(len(self.token_ids) - self.text.num_tokens)
        return self.text.num_tokens

    def end_text(self, text: ChoiceText, reason: FinishReason, error: TokenwireError | None) -> tuple[str, Terminal]:
        """The rest of its text, and its end without a terminal event from a model tier."""
        self.count()
        return text.end(reason, error)

    def drop_below(self, reason: CancelReason) -> None:
        """Ask the model tier for its end, where one has it, and hear no more of it."""
        if self.part is not None:
            self.part.drop(self.index, reason)

    def on_token(self, token_id: int) -> None:
        """As `on_tokens` with this one alone. After the first, what is whole text by itself touches nothing else."""
        texts = self._whole_texts
        if token_id < len(texts) and (text := texts[token_id]) and self.direct is not None:
            self.token_ids.append(token_id)
            self.direct(self.handle, text, 1)
        else:
            self.on_tokens((token_id,))

    def on_tokens(self, token_ids: Sequence[int], logprobs: SequenceLogprobs | None = None) -> None:
        """New tokens from a model tier."""
        text = self.text
        if self.ended or text is None or text.stop_string is not None:
            return
        self.token_ids += token_ids
        if text.is_plain:
            self._owner.on_text(self, text.push_plain(token_ids), token_ids)
            self._whole_texts = text.whole_texts
            return
        if logprobs is not None and logprobs.prompt:
            logprobs = self._without_repeated(logprobs)
        delta = text.push(token_ids, logprobs)
        self._owner.on_text(self, delta.text, token_ids[: delta.num_tokens], delta.logprobs, delta.parsed)
        if delta.stopped and self.part is not None:
            self.part.cancel(self.index, CancelReason.STOP_STRING)  # its terminal event is awaited

    def on_finish(self, terminal: Terminal) -> None:
        """A model tier's terminal event."""
        if self.ended or self.text is None:
            return
        if terminal.error is None or not self._owner.take_over(self, terminal.error, lost=False):
            self._owner.end_choice(self, *self.text.finish(terminal))

    def on_lost(self, error: TokenwireError) -> None:
        """The model tier was lost."""
        if not self.ended and not self._owner.take_over(self, error, lost=True):
            self._owner.end_lost(self, error)

    def on_failed(self, error: TokenwireError) -> None:
        """A bug of ours: the text stands as it was sent."""
        if not self.ended:
            self._owner.fail_choice(self, error)

    def _without_repeated(self, logprobs: SequenceLogprobs) -> SequenceLogprobs:
        repeated = min(self._num_repeated, len(logprobs.prompt))
        self._num_repeated -= repeated
        self.num_prompt_logprobs += len(logprobs.prompt) - repeated
        return SequenceLogprobs(logprobs.tokens, logprobs.prompt[repeated:]) if repeated else logprobs
