"""What is remembered of the prompts that this process answered last: how they ended and where their time went.

One short tuple for each prompt, when it ends; nothing of what was asked, answered, or by whom.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.submission import Submission
from tokenwire.requests import ModelTimings, TokenizerTimings, Usage

MAX_RECENT = 32


@dataclass(frozen=True, slots=True)
class Ended:
    """One prompt that was answered, refused by a tier below, or left by its caller."""

    number: int
    """The submission's."""
    reason: str
    """Of its last output: a FinishReason, or the code of an error. `cancelled`: its caller left."""
    usage: Usage
    """The prompt's tokens as its last output has them; the tokens of all outputs."""
    ended_s: float
    """Monotonic clock."""
    total_s: float
    """From receipt."""
    tokenizer: TokenizerTimings | None
    model: ModelTimings | None


class Recent:
    """The last ones, in the order in which they ended."""

    def __init__(self) -> None:
        self._ended: deque[Ended] = deque(maxlen=MAX_RECENT)

    def add(self, submission: Submission) -> None:
        """It has ended."""
        terminal, now_s = submission.last_terminal, time.monotonic()
        reason = "cancelled"
        if terminal is not None:
            reason = terminal.reason.value if terminal.error is None else terminal.error.code.lower()
        prompt = terminal.usage if terminal is not None else Usage()
        self._ended.append(
            Ended(
                number=submission.number,
                reason=reason,
                usage=Usage(prompt.prompt_tokens, prompt.cached_tokens, submission.num_completion_tokens),
                ended_s=now_s,
                total_s=now_s - submission.context.arrival_s,
                tokenizer=terminal.tokenizer_timings if terminal is not None else None,
                model=terminal.model_timings if terminal is not None else None,
            )
        )

    def __iter__(self) -> Iterator[Ended]:
        return iter(self._ended)
