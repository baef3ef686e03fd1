"""What is noted of each request, and what makes an answer count. Knows neither clients nor percentiles."""

import time
from dataclasses import dataclass, field

from benchmarks.loadgen.work import Work


@dataclass(slots=True)
class Record:
    """One request. Times are seconds of `time.perf_counter`."""

    number: int
    due_s: float
    """When it was to be sent; latencies count from here, so a late client hides nothing."""
    sent_s: float = 0.0
    pieces_s: list[float] = field(default_factory=list)
    """When each piece of the answer with new text or tokens came."""
    ended_s: float = 0.0
    streamed_tokens: int | None = None
    """Tokens that the pieces said they hold; None where pieces do not say."""
    prompt_tokens: int | None = None
    """As the server counted, in its last message."""
    completion_tokens: int | None = None
    error: str = ""
    """Why it does not count; empty: it does."""
    text: str = ""
    first_text_s: dict[str, float] = field(default_factory=dict)
    """By tier, what it added to the wait for the first text, where the server tells."""

    def piece(self, now_s: float | None = None) -> None:
        """A piece of the answer has come."""
        self.pieces_s.append(time.perf_counter() if now_s is None else now_s)

    def streamed(self, num_tokens: int) -> None:
        """A piece said how many tokens it holds."""
        self.streamed_tokens = (self.streamed_tokens or 0) + num_tokens

    def judge(self, work: Work) -> None:
        """Set `error` unless the answer has exactly the tokens that were asked for."""
        if self.error:
            return
        if self.completion_tokens is None:
            self.error = "the answer does not say how many tokens it has (no usage)"
        elif self.completion_tokens != work.output_tokens:
            self.error = f"{self.completion_tokens} output tokens came, {work.output_tokens} were asked for"
        elif self.prompt_tokens != work.prompt_tokens:
            self.error = f"the server counted {self.prompt_tokens} prompt tokens, {work.prompt_tokens} were sent"
        elif self.streamed_tokens is not None and self.streamed_tokens != work.output_tokens:
            self.error = f"{self.streamed_tokens} tokens were streamed, usage says {work.output_tokens}"
        elif not self.pieces_s:
            self.error = "nothing was streamed"

    @property
    def ttft_s(self) -> float:
        """From due until the first piece."""
        return self.pieces_s[0] - self.due_s

    @property
    def e2e_s(self) -> float:
        """From due until the end."""
        return self.ended_s - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between one piece and the next."""
        return [after - before for before, after in zip(self.pieces_s, self.pieces_s[1:], strict=False)]
