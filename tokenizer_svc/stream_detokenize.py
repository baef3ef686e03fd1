"""Token ids to text as they come, for many sequences on one stream: StreamDetokenize without the wire.

The text is made as that of generated tokens is (Detokenizer, then stop strings), so that a client which decodes by
itself, or which lost a stream of text and has the token ids, gets the same text to the character.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import InvalidRequest, Overloaded
from tokenwire.requests import FinishReason, GenerationOptions

MAX_SEQUENCES = 4096
"""Open at once on one stream."""
MAX_STOPPED = 65_536
"""Handles remembered that a stop string ended."""


@dataclass(slots=True)
class _Sequence:
    text: ChoiceText
    replay_tokens: int
    """Tokens to come whose text the caller has."""
    replay_chars: int
    """Characters to come that the caller has."""
    num_chars: int = 0
    """Characters so far, whether sent or not."""


class OpenSequences:
    """The sequences of one stream, by the caller's handles."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._open: dict[int, _Sequence] = {}
        self._stopped: dict[int, None] = {}
        """Handles that a stop string ended and that the caller has not ended yet, the oldest first."""

    def is_over(self, handle: int, *, end: bool) -> bool:
        """Whether a stop string has ended this sequence and these tokens, sent before that was heard, are for nothing.

        `end`: they are the last; then the handle may begin anew.
        """
        if handle not in self._stopped:
            return False
        if end:
            del self._stopped[handle]
        return True

    def is_new(self, handle: int) -> bool:
        """Whether this handle begins a sequence."""
        return handle not in self._open

    def begin(
        self,
        handle: int,
        options: GenerationOptions,
        *,
        prompt_ids: Sequence[int] = (),
        received_tokens: int = 0,
        received_chars: int = 0,
    ) -> None:
        """Begin a sequence. Raises Overloaded when too many are open.

        Of the options, stop strings, `min_tokens` and what is said of special tokens count. `received_tokens`,
        `received_chars`: the text of so many tokens, or so much text, is not given again.
        """
        if len(self._open) >= MAX_SEQUENCES:
            raise Overloaded(
                f"{MAX_SEQUENCES} sequences are open on this stream: end some", reason="TOO_MANY_SEQUENCES"
            )
        detokenizer = Detokenizer(
            self._tokenizer,
            prompt_ids=prompt_ids,
            skip_special_tokens=options.skip_special_tokens,
            spaces_between_special_tokens=options.spaces_between_special_tokens,
        )
        matcher = None
        if options.stop_strings:
            matcher = StopStringMatcher(options.stop_strings, include_stop_string=options.include_stop_string)
        text = ChoiceText(detokenizer, matcher, len(prompt_ids), min_tokens=options.stop.min_tokens)
        self._open[handle] = _Sequence(text, received_tokens, received_chars)

    @property
    def handles(self) -> list[int]:
        """Of the sequences that are open, the oldest first."""
        return list(self._open)

    def push(self, handle: int, token_ids: Sequence[int], *, end: bool) -> tuple[str, str | None, bool]:
        """More tokens. Returns new text, the stop string that was met, and whether the sequence has ended.

        Raises InvalidRequest when it ends before what the caller claims to have.
        """
        sequence = self._open[handle]
        parts = []
        cut = min(sequence.replay_tokens, len(token_ids))
        sequence.replay_tokens -= cut
        for ids, wanted in ((token_ids[:cut], False), (token_ids[cut:], True)):
            if ids and sequence.text.stop_string is None:
                delta = sequence.text.push(ids)
                sequence.num_chars += len(delta.text)
                parts += [delta.text] if wanted else []
        if end and sequence.text.stop_string is None:
            rest, _ = sequence.text.end(FinishReason.LENGTH)
            sequence.num_chars += len(rest)
            parts.append(rest)
        ended = end or sequence.text.stop_string is not None
        text = "".join(parts)
        known = min(sequence.replay_chars, len(text))
        sequence.replay_chars -= known
        if ended:
            del self._open[handle]
            if not end:
                self._stopped[handle] = None
                if len(self._stopped) > MAX_STOPPED:
                    del self._stopped[next(iter(self._stopped))]
            _refuse_short(sequence)
        return text[known:], sequence.text.stop_string, ended


def _refuse_short(sequence: _Sequence) -> None:
    """Whoever has more of the text than there is has another text."""
    num_tokens = sequence.text.num_tokens
    if sequence.replay_tokens and sequence.text.stop_string is None:
        _refuse("received_tokens", f"{num_tokens + sequence.replay_tokens}: the sequence has {num_tokens} tokens")
    if sequence.replay_chars:
        given = sequence.num_chars + sequence.replay_chars
        _refuse("received_chars", f"{given}: the text of these tokens has {sequence.num_chars} characters")


def _refuse(field: str, description: str) -> None:
    raise InvalidRequest.of(field, description)
