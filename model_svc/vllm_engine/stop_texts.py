"""Looks for stop strings in the text of a growing sequence, so that the engine does no work past one.

The peer cuts the text itself; here a match only ends the sequence, at the token that completes it. Does not know the
wire.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class StopTexts:
    """One choice's."""

    def __init__(
        self, tokenizer: Tokenizer, strings: Sequence[str], *, min_tokens: int = 0, skip_special_tokens: bool = True
    ) -> None:
        """`min_tokens`: in the text of so many tokens no string is looked for."""
        self._tokenizer = tokenizer
        self._strings = strings
        self._min_tokens = min_tokens
        self._skip = skip_special_tokens
        self._longest = max(map(len, strings), default=0)
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._tail = ""
        """The last characters, in which a string may have begun."""
        self._num_tokens = 0

    def push(self, token_id: int) -> str | None:
        """The string that this token completes; the one that begins first where it completes several."""
        self._num_tokens += 1
        text = self._step(token_id)
        if self._num_tokens <= self._min_tokens or not text:
            return None
        text = self._tail + text
        found = [(place, string) for string in self._strings if (place := text.find(string)) >= 0]
        if found:
            return min(found)[1]
        self._tail = text[-(self._longest - 1) :] if self._longest > 1 else ""
        return None

    def _step(self, token_id: int) -> str:
        """The text that becomes whole with this token; bytes that are no text begin anew."""
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception:  # the library has no type of its own for a text that it cannot go on with
            self._stream = DecodeStream(skip_special_tokens=self._skip)
            return ""
