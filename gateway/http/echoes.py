"""What `echo` puts before a completion: its prompt, and what is known of the prompt's tokens.

Source: https://platform.openai.com/docs/api-reference/completions/create; the first token has no log-probability there.
Does not know where the text goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.http.logprobs import completion_logprobs
from gateway.token_texts import FirstToken, Ids, TokenTexts
from tokenwire.requests import TokenLogprob


@dataclass(frozen=True, slots=True)
class Echo:
    """One prompt as it is repeated."""

    text: str
    first_token: str = ""
    """The text of its first token, where log-probabilities are asked for."""
    num_hidden: int = 0
    """Characters of a special token that the tokenizer put before the text: places in the prompt count it in."""

    def logprobs(self, prompt: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`logprobs` of the repeated prompt, of whose tokens these are the second and those behind it."""
        placed = [replace(found, text_offset=max(0, found.text_offset - self.num_hidden)) for found in prompt]
        others = completion_logprobs(placed)
        first = {"tokens": self.first_token, "token_logprobs": None, "top_logprobs": None, "text_offset": 0}
        return {name: [value, *others[name]] for name, value in first.items()}

    def behind(self, output: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        """Tokens of the output with their places in the text that begins with the prompt."""
        return [replace(found, text_offset=found.text_offset + len(self.text)) for found in output]


async def echoes_of(prompts: Sequence[str | Ids], asker: TokenTexts, *, with_logprobs: bool) -> list[Echo]:
    """One echo for each prompt, token ids as the tier below tells them. Raises its errors."""
    decoded = iter(await asker.texts_of([prompt for prompt in prompts if not isinstance(prompt, str)]))
    texts = [prompt if isinstance(prompt, str) else next(decoded) for prompt in prompts]
    if not with_logprobs:
        return [Echo(text) for text in texts]
    encoded = iter(await asker.first_tokens_of([prompt for prompt in prompts if isinstance(prompt, str)]))
    firsts = [next(encoded) if isinstance(prompt, str) else FirstToken(prompt[:1], False) for prompt in prompts]
    first_texts = await asker.texts_of([first.ids for first in firsts])
    return [
        Echo(text, first_text, len(first_text) if first.added else 0)
        for text, first, first_text in zip(texts, firsts, first_texts, strict=True)
    ]
