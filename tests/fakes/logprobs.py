"""Log-probabilities that anyone can predict, exact in 32 bits, for tiers without a model."""

from collections.abc import Iterable
from dataclasses import replace

from tokenwire.requests import TokenLogprob


def logprob_of(token_id: int, num_top: int, *, text: str = "", text_offset: int = 0) -> TokenLogprob:
    """What a fake says of a token: its alternatives are the ids behind it, under the same text with their number."""
    top = tuple(
        TokenLogprob(token_id + i, -(i + 1) / 4, text=f"{text}{i or ''}" if text else "") for i in range(num_top)
    )
    return TokenLogprob(token_id, -0.25 - token_id % 16, top, text, text_offset)


def logprobs_of(token_ids: Iterable[int], num_top: int) -> list[TokenLogprob]:
    return [logprob_of(token_id, num_top) for token_id in token_ids]


def part_of_a_character(token: TokenLogprob) -> TokenLogprob:
    """A byte that is no text, as are its alternatives."""
    return replace(token, text="\ufffd", top=tuple(replace(each, text="\ufffd") for each in token.top))
