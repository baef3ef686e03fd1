"""The client's calls to embed: keyword arguments to a message, and what comes of it. Makes no call itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenwire.client.conversations import invalid
from tokenwire.client.events import Prompt
from tokenwire.client.messages import token_ids_message
from tokenwire.client.options import CallerOptions, caller_context, refuse_bad_text
from tokenwire.embedding_wire import embedding_options_to_wire
from tokenwire.embeddings import EmbeddingOptions, Pooling, refuse_inputs
from tokenwire.requests import Usage
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import context_to_wire, usage_from_wire

POOLINGS = ("mean", "last", "cls")


class EmbedOptions(CallerOptions, total=False):
    """How to embed and for whom."""

    pooling: Literal["mean", "last", "cls"]
    """Which positions count; absent: what the model was trained for."""
    normalize: bool
    """Scale to unit length; absent: true."""
    dimensions: int
    """Keep the first so many values; absent: all."""
    truncate: bool
    """Cut an input longer than the model takes at its end instead of refusing it."""
    split_special_tokens: bool
    """Read what stands for special tokens in texts as plain text; absent: it becomes special tokens."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The answer to one call."""

    vectors: list[list[float]]
    """One per input, in order."""
    usage: Usage


def embed_request(inputs: Sequence[Prompt], given: EmbedOptions) -> tokenizer_pb2.EmbedRequest:
    """A call to Embed. Raises InvalidRequest; an option that does not exist is a TypeError."""
    unknown = sorted(given.keys() - EmbedOptions.__annotations__.keys())
    if unknown:
        allowed = ", ".join(EmbedOptions.__annotations__)
        raise TypeError(f"no such option: {', '.join(unknown)}; allowed are {allowed}")
    request = tokenizer_pb2.EmbedRequest(
        context=context_to_wire(caller_context(given)),
        model=given.get("model", ""),
        options=embedding_options_to_wire(_options(given)),
        truncate=given.get("truncate", False),
        split_special_tokens=given.get("split_special_tokens", False),
    )
    for index, each in enumerate(inputs):
        if isinstance(each, str):
            refuse_bad_text(f"inputs[{index}]", each)
            request.texts.append(each)
        else:
            request.token_ids.append(token_ids_message(each, f"inputs[{index}]"))
    if request.texts and request.token_ids:
        raise invalid("inputs", "texts and token ids are mixed: embed one kind in a call")
    refuse_inputs([len(text) for text in request.texts] + [len(each.ids) for each in request.token_ids], "inputs")
    return request


def embeddings(response: tokenizer_pb2.EmbedResponse) -> Embeddings:
    """The vectors and what was read for them."""
    return Embeddings([list(each.values) for each in response.embeddings], usage_from_wire(response.usage))


def _options(given: EmbedOptions) -> EmbeddingOptions:
    pooling = given.get("pooling")
    if pooling is not None and pooling not in POOLINGS:
        raise invalid("pooling", f"{pooling!r} is not allowed: {', '.join(POOLINGS)}")
    dimensions = given.get("dimensions")
    if dimensions is not None and not (isinstance(dimensions, int) and 1 <= dimensions < 2**32):
        raise invalid("dimensions", f"{dimensions!r} is not allowed: an integer of 1 or more")
    return EmbeddingOptions(
        pooling=None if pooling is None else Pooling(pooling),
        normalize=given.get("normalize", True),
        dimensions=dimensions,
    )
