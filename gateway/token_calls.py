"""What a call that only tokenizes, detokenizes, renders or counts brings: how many items, and how many tokens.

Speaks the wire. Looks at sizes alone, not at what stands in a request.
"""

from typing import Any

from gateway.estimates import BYTES_PER_TOKEN
from tokenwire.token_calls import refuse_counted, refuse_items
from tokenwire.v1 import tokenizer_pb2

SIZED = (tokenizer_pb2.TokenizeRequest, tokenizer_pb2.ApplyChatTemplateRequest, tokenizer_pb2.CountTokensRequest)
"""Requests that bring text."""


def refuse_too_many(request: Any, most: int) -> None:
    """Raise InvalidRequest for more texts, sequences or conversations than `most`; other requests bring none."""
    if isinstance(request, tokenizer_pb2.TokenizeRequest):
        refuse_items(len(request.texts), "texts", most)
    elif isinstance(request, tokenizer_pb2.DetokenizeRequest):
        refuse_items(len(request.sequences), "sequences", most)
    elif isinstance(request, tokenizer_pb2.CountTokensRequest):
        refuse_counted(len(request.texts), len(request.conversations), most)


def estimated_tokens(request: Any) -> int:
    """The tokens that a tenant is charged for it: its ids, or a token for four bytes; 0 for what brings neither."""
    if isinstance(request, tokenizer_pb2.DetokenizeRequest):
        return sum(len(sequence.ids) for sequence in request.sequences)
    return -(-request.ByteSize() // BYTES_PER_TOKEN) if isinstance(request, SIZED) else 0
