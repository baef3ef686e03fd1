"""Whether a prompt and what is asked of it fit into the context, and how it is cut when the client allows that.

Pure arithmetic on counts; knows neither text nor where the limit comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenwire.errors import InvalidRequest

TOO_LONG = "CONTEXT_LENGTH_EXCEEDED"
"""The reason where prompt and output do not fit the context; OpenAI's clients look for it."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """How a prompt that is too long is cut."""

    at_end: bool = False
    """Cut its newest tokens away instead of its oldest."""
    max_tokens: int = 0
    """Most tokens that are kept; 0: as many as there is room for."""

    def kept(self, token_ids: Sequence[int], begin_id: int | None, num_kept: int | None = None) -> Sequence[int]:
        """The places of the ids that stay, at most `num_kept` (none given: `max_tokens`).

        A cut at the start leaves `begin_id` (begin of sequence) where it is.
        """
        num_kept = self.max_tokens if num_kept is None else num_kept
        num_cut = len(token_ids) - num_kept
        if num_cut <= 0:
            return range(len(token_ids))
        if self.at_end:
            return range(num_kept)
        if num_kept > 1 and begin_id is not None and token_ids[0] == begin_id:
            return [0, *range(num_cut + 1, len(token_ids))]
        return range(num_cut, len(token_ids))

    def cut(self, token_ids: list[int], num_kept: int, begin_id: int | None = None) -> list[int]:
        """At most so many of the ids; as `kept`."""
        kept = self.kept(token_ids, begin_id, num_kept)
        return token_ids if len(kept) == len(token_ids) else [token_ids[i] for i in kept]


def fit_prompt(
    token_ids: list[int],
    *,
    max_tokens: int | None,
    truncation: Truncation | None,
    max_context_tokens: int,
    begin_id: int | None = None,
) -> list[int]:
    """The prompt that is sent on: the same, or cut so that it leaves room for `max_tokens` (or for 1).

    `max_context_tokens` 0: not known, not checked. Raises InvalidRequest naming the field, its value and what is
    allowed.
    """
    if not token_ids:
        raise InvalidRequest.of("input", "the prompt is empty: at least one token is needed")
    if truncation is not None and truncation.max_tokens:
        token_ids = truncation.cut(token_ids, truncation.max_tokens, begin_id)
    if not max_context_tokens:
        return token_ids
    wanted = 1 if max_tokens is None else max_tokens
    if wanted >= max_context_tokens:
        raise InvalidRequest.of(
            "options.stop.max_tokens",
            f"{wanted} is not allowed: the context holds {max_context_tokens} tokens, the prompt's included",
            reason=TOO_LONG,
        )
    room = max_context_tokens - wanted
    if len(token_ids) <= room:
        return token_ids
    if truncation is not None:
        return truncation.cut(token_ids, room, begin_id)
    if max_tokens is not None and len(token_ids) < max_context_tokens:
        raise InvalidRequest.of(
            "options.stop.max_tokens",
            f"{max_tokens} is not allowed: after a prompt of {len(token_ids)} tokens the context of "
            f"{max_context_tokens} holds at most {max_context_tokens - len(token_ids)} more",
            reason=TOO_LONG,
        )
    raise too_long(str(len(token_ids)), max_context_tokens)


def too_long(num_tokens: str, max_context_tokens: int) -> InvalidRequest:
    """The refusal of a prompt that leaves no room; `num_tokens` as it is said."""
    return InvalidRequest.of(
        "input",
        f"the prompt has {num_tokens} tokens, the context holds {max_context_tokens} with at least one for the "
        "output: shorten it or set truncate",
        reason=TOO_LONG,
    )
