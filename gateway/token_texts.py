"""Asks a tokenizer tier what token ids stand for, in plain values; speaks the wire. Does not know why it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.backends import Backends
from tokenwire.requests import RequestContext
from tokenwire.v1 import common_pb2, tokenizer_pb2

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of an encoded text."""

    ids: Ids
    """One id, or none where the text has no tokens."""
    added: bool
    """The tokenizer put it before the text."""


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """On behalf of one request."""

    backends: Backends
    context: RequestContext
    model: str
    split_special_tokens: bool = False

    async def texts_of(self, sequences: Sequence[Ids]) -> list[str]:
        """Each sequence as text, special tokens shown. Raises the tier's errors."""
        if not sequences:
            return []
        request = tokenizer_pb2.DetokenizeRequest(model=self.model, skip_special_tokens=False)
        request.sequences.extend(common_pb2.TokenIds(ids=ids) for ids in sequences)
        return list((await self._call("Detokenize", request)).texts)

    async def first_tokens_of(self, texts: Sequence[str]) -> list[FirstToken]:
        """What each text begins with as tokens. Raises the tier's errors."""
        if not texts:
            return []
        request = tokenizer_pb2.TokenizeRequest(
            model=self.model, texts=texts, return_offsets=True, split_special_tokens=self.split_special_tokens
        )
        return [
            FirstToken(tuple(encoding.token_ids[:1]), bool(encoding.ends) and encoding.ends[0] == 0)
            for encoding in (await self._call("Tokenize", request)).encodings
        ]

    async def _call(self, method: str, request: Any) -> Any:
        timeout_s, request_id = self.context.remaining_s(), self.context.request_id
        return await self.backends.call(method, request, timeout_s=timeout_s, request_id=request_id)
