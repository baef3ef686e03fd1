"""Embedding options and vectors ↔ messages. Knows the wire; what the values mean is `tokenwire.embeddings`'."""

from array import array
from collections.abc import Iterable

from tokenwire.embeddings import EmbeddingOptions, Pooling, Vector
from tokenwire.errors import FieldViolation
from tokenwire.sampling import refuse
from tokenwire.v1 import common_pb2
from tokenwire.v1 import model_pb2 as pb

POOLING_TO_WIRE: dict[Pooling | None, pb.Pooling] = {
    None: pb.POOLING_UNSPECIFIED,
    **{pooling: getattr(pb, f"POOLING_{pooling.name}") for pooling in Pooling},
}
POOLING_FROM_WIRE = {number: pooling for pooling, number in POOLING_TO_WIRE.items()}


def embedding_options_from_wire(message: pb.EmbeddingOptions, prefix: str = "options") -> EmbeddingOptions:
    """How to pool and shape. Raises InvalidRequest for a pooling that there is not."""
    if message.pooling not in POOLING_FROM_WIRE:
        allowed = ", ".join(f"{number} ({pb.Pooling.Name(number)})" for number in POOLING_FROM_WIRE)
        refuse([FieldViolation(f"{prefix}.pooling", f"{message.pooling} is not allowed: {allowed}")])
    return EmbeddingOptions(
        pooling=POOLING_FROM_WIRE[message.pooling],
        normalize=message.normalize if message.HasField("normalize") else True,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
    )


def embedding_options_to_wire(options: EmbeddingOptions) -> pb.EmbeddingOptions:
    """How to pool and shape."""
    message = pb.EmbeddingOptions(pooling=POOLING_TO_WIRE[options.pooling], normalize=options.normalize)
    if options.dimensions is not None:
        message.dimensions = options.dimensions
    return message


def vectors_to_wire(vectors: Iterable[Vector]) -> list[pb.Embedding]:
    """One message per vector."""
    return [pb.Embedding(values=memoryview(vector).cast("f")) for vector in vectors]


def vectors_from_wire(messages: Iterable[pb.Embedding]) -> list[Vector]:
    """One vector per message."""
    return [array("f", message.values).tobytes() for message in messages]


def capabilities_to_wire(*, generates: bool, embeds: bool) -> list[common_pb2.Capability]:
    """What a model can be asked for."""
    found = [common_pb2.CAPABILITY_GENERATE] if generates else []
    return [*found, common_pb2.CAPABILITY_EMBED] if embeds else found


def generates(card: common_pb2.ModelCard) -> bool:
    """Whether a model gives text. One whose card does not say does."""
    return not card.capabilities or common_pb2.CAPABILITY_GENERATE in card.capabilities


def capability_names(card: common_pb2.ModelCard) -> list[str]:
    """What a model says that it can be asked for, in words: "generate", "embed"."""
    names = {common_pb2.CAPABILITY_GENERATE: "generate", common_pb2.CAPABILITY_EMBED: "embed"}
    return [names[number] for number in card.capabilities if number in names]
