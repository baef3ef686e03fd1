"""How far one sequence's output has gone in its grammar, and which tokens may come next.

The state is a function of the grammar and of the output's token ids: it is made anew from them wherever a sequence
goes, and so it is left out when a sequence travels to another process. Knows one sequence; does not know batches,
threads (see `bench`) or tensors.
"""

import time
from collections.abc import Sequence as Rows
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_svc.grammar.library import MAX_MASK_S, MAX_SLOW_MASKS, reason_of
from model_svc.grammar.vocabulary import Vocabulary
from tokenwire.errors import InvalidRequest, TokenwireError

if TYPE_CHECKING:  # see `vocabulary`
    from llguidance import LLMatcher

Bits = NDArray[np.uint8]
"""[mask_bytes]: a bit per token id, least significant first; set: the token may come."""

MAX_DRAFTS_MASK_S = 0.02
"""Processor time of a row's masks after drafts beyond which no other is begun: drafts are to save time."""
LONGEST_FORCED_BYTES = 32
"""Of a long text that is forced no more is looked at than so much for each token."""
MAX_FORCED_S = 0.002
"""Processor time of finding what is forced beyond which it is not looked for again: the next step waits for it. The
library takes about 33 ns for each byte that is."""


class Outcome(Enum):
    """What a grammar says of the next token."""

    TOKENS = "tokens"
    """The bits say which tokens may come; perhaps none."""
    COMPLETE = "complete"
    """The text is whole, nothing can be added, and the request has no token that would say so."""


class Matching:
    """A sequence's constraint. Pickles as its grammar alone."""

    __slots__ = ("error", "finds_forced", "grammar", "is_ready", "matcher", "num_consumed", "num_slow")

    def __init__(self, grammar: str) -> None:
        """`grammar`: in the library's own form, compiled once already where the request came in."""
        self.grammar = grammar
        self.matcher: LLMatcher | None = None
        """None until it is made."""
        self.num_consumed = 0
        """Output tokens that the matcher has seen."""
        self.error: TokenwireError | None = None
        """Why nothing more can come of it."""
        self.num_slow = 0
        """Masks that took longer than MAX_MASK_S."""
        self.is_ready = False
        """Whether the next step may need it: the matcher is made and has seen the output, or there is an error."""

        self.finds_forced = True
        """Whether it is worth asking what is forced."""

    def __reduce__(self) -> tuple[type["Matching"], tuple[str]]:
        return Matching, (self.grammar,)

    def consume(self, token_ids: Rows[int]) -> None:
        """Go on by these output tokens. Sets `error` where the grammar does not allow them."""
        if not token_ids or self.error is not None or self.matcher is None:
            return
        if self.matcher.try_consume_tokens(list(token_ids)) != len(token_ids):
            self.error = self._failure("the output so far does not fit the constraint")
        self.num_consumed += len(token_ids)

    def fill(self, bits: Bits, vocabulary: Vocabulary, stop_ids: Rows[int]) -> Outcome:
        """Write which tokens may come next, `stop_ids` among them where the text may end. Sets `error`.

        With an error the bits allow everything: what is drawn is not looked at.
        """
        bits[:] = 0xFF
        if self.error is not None or self.matcher is None:
            return Outcome.TOKENS
        started_s = time.thread_time()
        self.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        took_s = time.thread_time() - started_s
        if self.matcher.is_error() and "NoExtension" in self.matcher.get_error():
            bits[:] = 0  # the vocabulary has no token that goes on
            return Outcome.TOKENS
        self.num_slow += took_s > MAX_MASK_S
        if self.matcher.is_error() or self.num_slow > MAX_SLOW_MASKS:
            self.error = self._failure(
                f"finding the next token took more than {MAX_MASK_S} s, {self.num_slow} times; the last {took_s:.2f} s"
            )
            bits[:] = 0xFF
            return Outcome.TOKENS
        may_end = is_set(bits, vocabulary.end_id)
        clear(bits, vocabulary.end_id)
        stop_ids = [token_id for token_id in stop_ids if token_id < vocabulary.size]
        if may_end:
            if not stop_ids and not bits.any():
                return Outcome.COMPLETE
            for token_id in stop_ids:
                bits[token_id >> 3] |= 1 << (token_id & 7)
        return Outcome.TOKENS

    def fill_after(self, bits: Bits, vocabulary: Vocabulary, stop_ids: Rows[int], drafts: Rows[int]) -> None:
        """Write what may come after each of the drafts, were they the output's next tokens, into `bits` [1 + D, ...].

        `bits[0]` is what `fill` wrote. Nothing of this stays in the matcher. After a draft that may not come the bits
        allow everything: it is not drawn, so nobody looks further. After one with which the matching fails, or past
        MAX_DRAFTS_MASK_S, they allow nothing: that token is left to a step in which it is the first.
        """
        bits[1:] = 0xFF
        if self.error is not None or self.matcher is None:
            return
        ahead = Matching(self.grammar)
        ahead.matcher = self.matcher.deep_copy()
        started_s = time.thread_time()
        for at, (draft, (before, own)) in enumerate(zip(drafts, pairwise(bits), strict=True), 1):
            if not is_set(before, draft):
                return
            if time.thread_time() - started_s <= MAX_DRAFTS_MASK_S:
                ahead.consume([draft])
                ahead.fill(own, vocabulary, stop_ids)
                if ahead.error is None:
                    continue
            bits[at:] = 0
            return

    def forced(self, token_ids: Rows[int], vocabulary: Vocabulary, num_tokens: int) -> list[int]:
        """Up to `num_tokens` of the text that must follow these output tokens, which the matcher does not see by this.

        Which tokens that text is made of is the model's choice: these are the longest ones, a guess. The last one is
        left out unless the whole text ends with it, as the model may choose a longer one.
        """
        if self.error is not None or self.matcher is None or not self.finds_forced:
            return []
        started_s = time.thread_time()
        ahead = self.matcher.deep_copy()
        if ahead.try_consume_tokens(list(token_ids)) != len(token_ids):
            return []
        text = ahead.compute_ff_bytes()
        self.finds_forced = time.thread_time() - started_s <= MAX_FORCED_S
        tokens = vocabulary.longest_tokens(text[: (num_tokens + 1) * LONGEST_FORCED_BYTES])
        if len(tokens) <= num_tokens and ahead.try_consume_tokens(tokens) == len(tokens) and ahead.is_stopped():
            return tokens
        return tokens[:-1][:num_tokens]

    def _failure(self, what: str) -> InvalidRequest:
        """The grammar is of no more use: by its own limits, or for this reason."""
        field = "options.constraint"
        if self.matcher is not None and self.matcher.is_error():
            what = f"it became too complex for this output ({reason_of(self.matcher.get_error())})"
        return InvalidRequest.of(field, what, reason="CONSTRAINT_FAILED")


def is_set(bits: Bits, token_id: int) -> bool:
    """Whether this token may come."""
    return bool(bits[token_id >> 3] >> (token_id & 7) & 1)


def clear(bits: Bits, token_id: int) -> None:
    """Say that this token may not come."""
    bits[token_id >> 3] &= 0xFF ^ (1 << (token_id & 7))
