"""Log-probabilities of one sequence on their way up: merged like the text they come with, and cut where they get large.

Does not know where they come from nor what they are shown as.
"""

from dataclasses import dataclass, field

from tokenwire.requests import TokenLogprob

MAX_ENTRIES = 16_384
"""Tokens and alternatives in one message: some 25 bytes each, so that it fits a client's default limit of 4 MiB."""


@dataclass(slots=True)
class SequenceLogprobs:
    """What came together for one sequence. Belongs to whoever it was handed to, who may extend it."""

    tokens: list[TokenLogprob] = field(default_factory=list)
    """One per new token."""
    prompt: list[TokenLogprob] = field(default_factory=list)
    """The prompt's next tokens; they come before the first output token."""
    num_entries: int = field(init=False, compare=False)
    """Tokens and their alternatives."""

    def __post_init__(self) -> None:
        self.num_entries = sum(map(_num_entries, self.tokens)) + sum(map(_num_entries, self.prompt))

    def extend(self, more: "SequenceLogprobs") -> None:
        """Append what came later."""
        self.tokens += more.tokens
        self.prompt += more.prompt
        self.num_entries += more.num_entries

    def pieces(self) -> list["SequenceLogprobs"]:
        """The same in pieces of at most MAX_ENTRIES. The output's tokens, which share a text, stay together."""
        if self.num_entries <= MAX_ENTRIES:
            return [self]
        found = [SequenceLogprobs()]
        for more in (*(SequenceLogprobs(prompt=[logprob]) for logprob in self.prompt), SequenceLogprobs(self.tokens)):
            if has_room(found[-1], more):
                found[-1].extend(more)
            else:
                found.append(more)
        return found


def has_room(waiting: SequenceLogprobs | None, more: SequenceLogprobs | None) -> bool:
    """Whether both fit one message."""
    return waiting is None or more is None or waiting.num_entries + more.num_entries <= MAX_ENTRIES


def joined(waiting: SequenceLogprobs | None, more: SequenceLogprobs) -> SequenceLogprobs:
    """What waits, extended by what came later."""
    if waiting is None:
        return more
    waiting.extend(more)
    return waiting


def _num_entries(logprob: TokenLogprob) -> int:
    return 1 + len(logprob.top)
