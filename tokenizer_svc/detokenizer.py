"""Token ids to text as they come: one Detokenizer per sequence.

A character whose bytes are spread over tokens is held back until it is whole. The text continues the prompt: it is
`decode(prompt + output)` without `decode(prompt)`, so that with tokenizers that drop a text's leading space (Metaspace,
WordPiece) the first generated word keeps the space that separates it from the prompt. After a prompt that ends in a
special token, and for byte-level tokenizers always, this is simply `decode(output)`.

Where output bytes are no UTF-8, what was sent cannot be taken back: a decoder that judges a run of byte tokens as a
whole (ByteFallback) would then replace characters that were whole when they were sent. Knows nothing of stop strings.
"""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from tokenizer_svc.tokenizer import Tokenizer

CONTEXT_TOKENS = 6
"""Prompt tokens that the first output token is decoded after; one would do, but for several special tokens in a row."""
MAX_HELD_TOKENS = 48
"""A whole character is at most 4 byte tokens. More tokens without text than this are bytes that will never be UTF-8, or
skipped special tokens; both are settled then, because DecodeStream decodes all it holds on every step."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one growing sequence. Work per token does not depend on how many came before."""

    def __init__(self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True):
        """`prompt_ids`: what the output continues; only its end is looked at."""
        self._tokenizer = tokenizer
        self._num_chars = 0
        self._skip = skip_special_tokens
        self._held: list[int] = []
        """Tokens whose text has not been given out."""
        self._context: list[int] = []
        """Tokens that the held ones are decoded after."""
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        if prompt_ids:
            self._restart(list(prompt_ids[-CONTEXT_TOKENS:]))

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        step, backend, held = self._stream.step, self._tokenizer.backend, self._held
        parts: list[str] = []
        for token_id in token_ids:
            held.append(token_id)
            try:
                text = step(backend, token_id)
            except Exception:  # "Invalid prefix": bytes that are no UTF-8 changed the text that was given out before
                text = self._settle()
                step, held = self._stream.step, self._held
            else:
                if text is not None:
                    self._context = held
                    self._held = held = []
                elif len(held) >= MAX_HELD_TOKENS:
                    text = self._settle()
                    step, held = self._stream.step, self._held
            if text:
                parts.append(text)
        text = "".join(parts)
        self._num_chars += len(text)
        return text

    @property
    def position(self) -> int:
        """Where the next token begins in the text, in characters; inside a character, where that one begins.

        Held-back bytes that turn out to be no UTF-8 are not counted before they are given out.
        """
        return self._num_chars + (len(self._rest().rstrip(REPLACEMENT)) if self._held else 0)

    def flush(self) -> str:
        """The output has ended: what was held back, with U+FFFD for bytes that are no character."""
        return self._settle() if self._held else ""

    def _settle(self) -> str:
        """The text of the held tokens as it stands; they become the context of what follows."""
        text = self._rest()
        self._restart(self._held if text else self._context)
        return text

    def _rest(self) -> str:
        """What the held tokens add to the text of the context."""
        before = self._decode(self._context)
        after = self._decode(self._context + self._held)
        return after[len(before) :] if after.startswith(before) else self._decode(self._held)

    def _restart(self, context: list[int]) -> None:
        """Go on after `context`. One that ends inside a character is left out: its text could change."""
        self._context = [] if self._decode(context).endswith(REPLACEMENT) else context
        self._held = []
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=self._skip)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)
