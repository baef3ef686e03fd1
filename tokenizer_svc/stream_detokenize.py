"""Token ids to text as they come, for many sequences on one stream: StreamDetokenize without the wire."""

from collections.abc import Sequence

from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import Overloaded
from tokenwire.requests import FinishReason

MAX_SEQUENCES = 4096
"""Open at once on one stream."""


class OpenSequences:
    """The sequences of one stream, by the caller's handles."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._open: dict[int, ChoiceText] = {}

    def is_new(self, handle: int) -> bool:
        """Whether this handle begins a sequence."""
        return handle not in self._open

    def begin(self, handle: int, stop_strings: tuple[str, ...], *, skip_special_tokens: bool) -> None:
        """Begin a sequence. Raises Overloaded when too many are open."""
        if len(self._open) >= MAX_SEQUENCES:
            raise Overloaded(
                f"{MAX_SEQUENCES} sequences are open on this stream: end some", reason="TOO_MANY_SEQUENCES"
            )
        matcher = StopStringMatcher(stop_strings) if stop_strings else None
        detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=skip_special_tokens)
        self._open[handle] = ChoiceText(detokenizer, matcher, 0)

    def push(self, handle: int, token_ids: Sequence[int], *, end: bool) -> tuple[str, str | None, bool]:
        """More tokens. Returns new text, the stop string that was met, and whether the sequence has ended."""
        text = self._open[handle]
        delta = text.push(token_ids)
        rest = ""
        if end and not delta.stopped:
            rest, _ = text.end(FinishReason.LENGTH)
        ended = end or delta.stopped
        if ended:
            del self._open[handle]
        return delta.text + rest, text.stop_string, ended
