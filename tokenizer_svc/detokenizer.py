"""Token ids to text as they come: one Detokenizer per sequence, whether a model's output or a client's own tokens.

A character whose bytes are spread over tokens is held back until it is whole. The text continues the prompt: it is
`decode(prompt + output)` without `decode(prompt)`, so that with tokenizers that drop a text's leading space (Metaspace,
WordPiece) the first generated word keeps the space that separates it from the prompt. After a prompt that ends in a
special token, and for byte-level tokenizers always, this is simply `decode(output)`. Where that holds always, a token
of whole characters is its own text, and the library's stream sees only the others.

A decoder with byte fallback judges a run of byte tokens as a whole: one byte that is no UTF-8 makes U+FFFD of each.
What was sent cannot be taken back, so a run is held back until a token ends it, or until it has `MAX_RUN_TOKENS`; only
in a longer one may characters have been given out that `decode` of the whole would replace. Knows nothing of stop
strings.
"""

import codecs
from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from tokenizer_svc.tokenizer import Tokenizer

CONTEXT_TOKENS = 6
"""Prompt tokens that the first output token is decoded after; one would do, but for several special tokens in a row."""
MAX_HELD_TOKENS = 48
"""A whole character is at most 4 byte tokens. More tokens without text than this are bytes that will never be UTF-8;
that is settled then, because DecodeStream decodes all it holds on every step."""
MAX_RUN_TOKENS = 32
"""Byte tokens in a row that are held back at most: ten characters or so of a script that the vocabulary lacks."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTINUATIONS = b"\x80\xa0"
"""One of these goes on with any character that has begun."""


class Detokenizer:
    """The text of one growing sequence. Work per token does not depend on how many came before."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        """`prompt_ids`: what the output continues; only its end is looked at.

        `spaces_between_special_tokens` false: a special token that directly follows another one is its own text alone,
        without the space that the decoder may put before it.
        """
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size
        self._skip = skip_special_tokens
        self._left_out = tokenizer.special_ids | tokenizer.unused_ids if skip_special_tokens else tokenizer.unused_ids
        """Ids that are no text and do not come between others."""
        self._byte_of = tokenizer.byte_of
        self._joined = {} if spaces_between_special_tokens or skip_special_tokens else tokenizer.special_texts
        """The text of each special token, where no space comes before it."""
        self._after_special = bool(prompt_ids) and prompt_ids[-1] in self._joined
        self._num_chars = 0
        self._held: list[int] = []
        """Tokens whose text has not been given out."""
        self._num_run = 0
        """How many of them, at the end, are a run of byte tokens."""
        self._run_is_broken = False
        """A run goes on that was found to be no UTF-8 when it became too long: each of its bytes is U+FFFD."""
        self._context: list[int] = []
        """Tokens that the held ones are decoded after."""
        self._backend = tokenizer.backend
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._own_texts = tokenizer.own_texts if not self._joined else None
        """By id, empty where its bytes are not whole characters; None where a token's text depends on others."""
        if prompt_ids and self._own_texts is None:
            self._restart(list(prompt_ids[-CONTEXT_TOKENS:]))

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        left_out, vocab_size, byte_of, own_texts = self._left_out, self._vocab_size, self._byte_of, self._own_texts
        text = ""
        for token_id in token_ids:
            if token_id in left_out or token_id >= vocab_size:
                continue
            if own_texts is not None and not self._held and (own := own_texts[token_id]):
                text += own  # what the stream decoded before does not matter to what it will
            elif token_id in byte_of:
                text += self._push_byte(token_id)
            else:
                text += self._push_token(token_id)
        self._num_chars += len(text)
        return text

    @property
    def whole_texts(self) -> Sequence[str]:
        """By token id: what `push` would give for that token next; empty where only `push` can tell.

        As long as its entry is not empty, a token need not be pushed: what follows does not depend on it, but for
        `position_of`.
        """
        if self._held or self._own_texts is None:
            return ()
        return self._tokenizer.plain_texts or () if self._skip else self._own_texts

    def position_of(self, token_id: int) -> int:
        """Where this token begins in the text when it is pushed next, in characters; within one, where that one begins.

        Bytes of byte fallback count as the characters that they may still become: should their run turn out to be no
        UTF-8 later, what was told of those before stays. With decoders that are neither that nor byte-level alone,
        U+FFFD that is held back is not counted.
        """
        held = self._held
        if not held:
            return self._num_chars
        between = token_id not in self._left_out and token_id < self._vocab_size
        if self._tokenizer.own_texts is not None:
            bytes_of = self._tokenizer.token_bytes
            following = bytes_of(token_id)[:1] if between else CONTINUATIONS
            return self._num_chars + _num_begun(b"".join(map(bytes_of, held)), following)
        if not self._num_run:
            return self._num_chars + len(self._rest(held).rstrip(REPLACEMENT))
        num_incomplete = self._num_incomplete() or 0
        if num_incomplete and between:
            begun = bytes(self._byte_of[each] for each in held[-num_incomplete:])
            if token_id not in self._byte_of or _num_begun(begun, bytes((self._byte_of[token_id],))):
                num_incomplete = 0
        return self._num_chars + len(self._rest(held[: len(held) - num_incomplete]))

    def flush(self) -> str:
        """The output has ended: what was held back, with U+FFFD for bytes that are no character."""
        text = self._settle() if self._held else ""
        self._num_chars += len(text)
        return text

    def _push_token(self, token_id: int) -> str:
        """Any token but a byte of byte fallback."""
        before = ""
        if self._num_run:
            before = self._settle()
        self._run_is_broken = False
        held = self._held
        held.append(token_id)
        text: str | None
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception:  # "Invalid prefix": bytes that are no UTF-8 changed the text that was given out before
            text = self._settle()
        else:
            if text is not None:
                self._context = held
                self._held = []
            elif len(held) >= MAX_HELD_TOKENS:
                text = self._settle()
        if self._joined:
            is_special = token_id in self._joined
            if is_special and self._after_special and text:
                text = self._joined[token_id]
            self._after_special = is_special
        return before + (text or "")

    def _push_byte(self, token_id: int) -> str:
        """A byte of byte fallback: more of a run."""
        self._after_special = False
        if self._run_is_broken:
            return REPLACEMENT
        self._held.append(token_id)
        self._num_run += 1
        if self._num_run < MAX_RUN_TOKENS:
            return ""
        num_incomplete = self._num_incomplete()
        if num_incomplete is None:
            text = self._settle()
            self._run_is_broken = True
            return text
        cut = len(self._held) - num_incomplete
        rest = self._held[cut:]
        self._held = self._held[:cut]
        text = self._settle()
        self._held, self._num_run = rest, len(rest)
        return text

    def _num_incomplete(self) -> int | None:
        """Bytes at the end of the run that begin a character; None when the run is no UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(bytes(self._byte_of[token_id] for token_id in self._held[-self._num_run :]))
        except UnicodeDecodeError:
            return None
        return len(decoder.getstate()[0])

    def _settle(self) -> str:
        """The text of the held tokens as it stands; they become the context of what follows."""
        text = self._rest(self._held)
        context = self._held if text else (self._context + self._held)[-MAX_HELD_TOKENS:]
        self._restart(context)
        return text

    def _rest(self, held: list[int]) -> str:
        """What held tokens add to the text of the context."""
        before = self._decode(self._context)
        after = self._decode(self._context + held)
        return after[len(before) :] if after.startswith(before) else self._decode(held)

    def _restart(self, context: list[int]) -> None:
        """Go on after `context`. For one that ends inside a character another stands in: its text could change."""
        if self._decode(context).endswith(REPLACEMENT):
            context = self._tokenizer.neutral_ids
        self._context = context
        self._held = []
        self._num_run = 0
        self._stream = DecodeStream(ids=context, skip_special_tokens=self._skip)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


def _num_begun(before: bytes, following: bytes) -> int:
    """Characters that begin in `before`, but for one that any of the `following` bytes goes on with."""
    num_chars = _num_chars(before)
    return num_chars - any(_num_chars(before + bytes((byte,))) == num_chars for byte in following)


def _num_chars(content: bytes) -> int:
    """As the library shows them: U+FFFD for as many bytes as begin a character together."""
    return len(content.decode(errors="replace"))


def decode(
    tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool, spaces_between_special_tokens: bool
) -> str:
    """The text of a whole sequence, as a Detokenizer gives it."""
    if spaces_between_special_tokens or skip_special_tokens:
        return tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False, spaces_between_special_tokens=False)
    return detokenizer.push(token_ids) + detokenizer.flush()
