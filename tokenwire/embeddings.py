"""What an embedding is asked to be, as plain values, and how much one call may ask for.

Does not know how hidden states are computed, nor the wire (`tokenwire.embedding_wire`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tokenwire.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tokenwire.token_calls import refuse_count

MAX_INPUTS = 2048
"""Of one call."""
MAX_CALL_TOKENS = 1_000_000
"""Of all inputs of one call to the model tier."""
MAX_ANSWER_BYTES = 4 * 2**20 - 2**16
"""Of the vectors of one answer: gRPC clients take no message above 4 MiB unless told to."""
BYTES_PER_VALUE = 4

Vector = bytes
"""A vector: float32 values in this machine's byte order."""


class Pooling(Enum):
    """Which positions an embedding is made of; the names are those of the wire."""

    MEAN = "mean"
    LAST = "last"
    CLS = "cls"
    """The first."""


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """How hidden states become one vector."""

    pooling: Pooling | None = None
    """None: what the model was trained for."""
    normalize: bool = True
    """Scale to unit length, after dimensions were cut."""
    dimensions: int | None = None
    """Keep the first so many values; None: all."""

    def violations(self, embedding_size: int, prefix: str = "options") -> list[FieldViolation]:
        """What is wrong with these values for vectors of so many values; 0: not known."""
        most = embedding_size or 2**32 - 1
        if self.dimensions is None or 1 <= self.dimensions <= most:
            return []
        allowed = f"1 to {embedding_size}, the size of the model's vectors" if embedding_size else "1 or more"
        return [FieldViolation(f"{prefix}.dimensions", f"{self.dimensions} is not allowed: {allowed}")]


def generates_nothing(model: str) -> FailedPrecondition:
    """What a request for text is answered with where an encoder is served."""
    return FailedPrecondition(
        f"model: {model!r} is an encoder: it generates no text; ask it for embeddings (Embed)",
        reason="MODEL_DOES_NOT_GENERATE",
    )


def refuse_inputs(sizes: Sequence[int], field: str) -> None:
    """Raise InvalidRequest for no input, too many, and empty ones. `sizes`: the length of each."""
    refuse_count(len(sizes), "inputs", field, MAX_INPUTS)
    for index, size in enumerate(sizes):
        if not size:
            raise InvalidRequest.of(f"{field}[{index}]", "is empty: nothing can be embedded of it")


def refuse_answer_size(num_inputs: int, num_values: int, field: str) -> None:
    """Raise InvalidRequest where the vectors of so many inputs are more than one message may hold."""
    if num_inputs * num_values * BYTES_PER_VALUE > MAX_ANSWER_BYTES:
        most = MAX_ANSWER_BYTES // (num_values * BYTES_PER_VALUE)
        raise InvalidRequest.of(
            field,
            f"{num_inputs} vectors of {num_values} values do not fit into an answer of 4 MiB: send at most {most} "
            "inputs in one call, or ask for fewer dimensions",
        )
