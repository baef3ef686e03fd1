"""Gives the log-probabilities of one choice their texts: each token's own, and where it begins in the text around it.

A place in the output counts the text as the Detokenizer gives it out, whatever a stop string makes of that; a place in
the prompt counts its text with special tokens shown. Knows nothing of the wire.
"""

from collections.abc import Iterable, Sequence

from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.requests import TokenLogprob


class LogprobTexts:
    """One choice's. The prompt's tokens go through once, in order, from the second on."""

    __slots__ = ("_prompt", "_tokenizer", "every_token")

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, every_token: bool) -> None:
        """`every_token`: whether those of the output are wanted, and not the prompt's alone."""
        self.every_token = every_token
        self._tokenizer = tokenizer
        self._prompt = Detokenizer(tokenizer, skip_special_tokens=False)
        self._prompt.push(prompt_ids[:1])

    def of_output(self, logprob: TokenLogprob, position: int) -> TokenLogprob:
        """With the texts of an output token that begins at `position`."""
        text_of = self._tokenizer.token_text
        top = tuple(TokenLogprob(t.token_id, t.logprob, text=text_of(t.token_id)) for t in logprob.top)
        return TokenLogprob(logprob.token_id, logprob.logprob, top, text_of(logprob.token_id), position)

    def of_prompt(self, logprobs: Iterable[TokenLogprob]) -> list[TokenLogprob]:
        """With the texts of the prompt's next tokens."""
        found = []
        for logprob in logprobs:
            found.append(self.of_output(logprob, self._prompt.position_of(logprob.token_id)))
            self._prompt.push((logprob.token_id,))
        return found
