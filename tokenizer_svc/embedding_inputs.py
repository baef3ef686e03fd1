"""Inputs of a call to embed: texts to token ids, piece by piece, and cut to what the model takes where that is asked.

A cut leaves the special tokens around a text where they are, as the libraries do that such models were trained with,
and takes its end, where nothing else is said. Does not know what becomes of the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizer_svc.encoder import INLINE_CHARS
from tokenizer_svc.pieces import in_pieces
from tokenizer_svc.prompt import Truncation
from tokenizer_svc.tier import Tier
from tokenwire.errors import InvalidRequest
from tokenwire.token_calls import refuse_text_size

Affixes = tuple[Sequence[int], Sequence[int]]
NO_AFFIXES: Affixes = ((), ())


@dataclass(frozen=True, slots=True)
class EmbeddingInputs:
    """What is embedded: texts, or token ids that are used as they are. One of both is empty."""

    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    truncation: Truncation | None = None
    """How an input that is too long is cut; None: it is refused."""
    split_special_tokens: bool = False
    """What stands for special tokens in the texts is plain text."""

    def __len__(self) -> int:
        return len(self.texts) + len(self.token_ids)

    @property
    def field(self) -> str:
        """The name on the wire of what is given."""
        return "token_ids" if self.token_ids else "texts"


async def encode_inputs(inputs: EmbeddingInputs, tier: Tier, max_tokens: int, vocab_size: int) -> list[list[int]]:
    """The ids of each input, at most `max_tokens` (0: not known). Raises InvalidRequest naming the input.

    `vocab_size`: of the model; 0: not known. Long texts are encoded in pieces, so that others come between them.
    """
    tokenizer = tier.tokenizer
    for index, ids in enumerate(inputs.token_ids):
        tokenizer.check_ids(ids, f"token_ids[{index}].ids", vocab_size or None)
    encoded = [list(ids) for ids in inputs.token_ids]
    for index, text in enumerate(inputs.texts):
        refuse_text_size(text, f"texts[{index}]")
    split = inputs.split_special_tokens

    def encode(piece: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_batch(piece, add_special_tokens=True, split_special_tokens=split)
        return [encoding.token_ids for encoding in found]

    encoded += await in_pieces(inputs.texts, encode, tier.embedding_thread, inline_size=0 if split else INLINE_CHARS)
    affixes = tokenizer.affixes if inputs.texts and tokenizer.affixes is not None else NO_AFFIXES
    return [
        fitted(ids, max_tokens, inputs.truncation, affixes, f"{inputs.field}[{index}]")
        for index, ids in enumerate(encoded)
    ]


def fitted(ids: list[int], max_tokens: int, truncation: Truncation | None, affixes: Affixes, field: str) -> list[int]:
    """The ids, or what is left of them. Raises InvalidRequest for none, too many, and a cut that would leave none."""
    if not ids:
        raise InvalidRequest.of(field, "has no token: nothing can be embedded of it")
    limits = [limit for limit in (max_tokens, truncation.max_tokens if truncation is not None else 0) if limit]
    most = min(limits, default=len(ids))
    if len(ids) <= most:
        return ids
    if truncation is None:
        raise InvalidRequest.of(field, f"has {len(ids)} tokens, the model takes {most}: shorten it or set truncate")
    before, behind = affixes
    room = most - len(before) - len(behind)
    if room < 1:
        raise InvalidRequest.of("truncation.max_tokens", f"{most} leaves nothing of an input beside its special tokens")
    inner = ids[len(before) : len(ids) - len(behind)]
    return [*before, *(inner[:room] if truncation.at_end else inner[-room:]), *behind]
