"""Tensors of the Open Inference Protocol ↔ plain values, in both forms that it has: typed contents and raw bytes.

Does not know what an input is for. Source: https://github.com/kserve/open-inference-protocol, and Triton's form of
raw BYTES: each element behind its length, four bytes, the lowest first.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenwire.errors import InvalidRequest
from tokenwire.kserve import inference_pb2 as pb

MAX_RANK = 4
"""Dimensions of an input; more mean nothing to a model of texts."""

MAX_ELEMENTS = 4096
"""Of one input: more than there may be texts in a request, and more than any other input means."""

FORMATS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""How `struct` calls the elements of raw bytes. BYTES have lengths of their own."""

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Which field of InferTensorContents holds the elements of a type."""

LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]
    """Its elements, row after row: bool, int, float or bytes."""


def read_inputs(request: pb.ModelInferRequest, known: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The inputs by name. `known`: the names that there are, each with the types that it may have.

    Raises InvalidRequest for what is unknown, given twice, of another type, or not as large as its shape says.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        said = f"{len(raw)} entries for {len(request.inputs)} inputs: one for each input, or none at all"
        raise InvalidRequest.of("raw_input_contents", said)
    tensors: dict[str, Tensor] = {}
    for index, message in enumerate(request.inputs):
        name = message.name
        if name not in known:
            raise InvalidRequest.of(f"inputs[{index}]", f"there is no input {name!r:.80}; there are {', '.join(known)}")
        if name in tensors:
            raise InvalidRequest.of(name, "it is given twice")
        _check(message, known[name])
        num_elements = math.prod(message.shape)
        if num_elements > MAX_ELEMENTS:
            shown = list(message.shape)
            raise InvalidRequest.of(name, f"shape {shown} is not allowed: at most {MAX_ELEMENTS} elements")
        if not raw:
            values = _typed(message, num_elements)
        elif message.HasField("contents"):
            raise InvalidRequest.of(name, "it has contents while raw_input_contents is used: give one of them")
        elif message.datatype == "BYTES":
            values = _raw_bytes(name, raw[index], num_elements)
        else:
            values = _raw(message, raw[index], num_elements)
        tensors[name] = Tensor(name, message.datatype, tuple(message.shape), values)
    return tensors


def _check(message: pb.ModelInferRequest.InferInputTensor, datatypes: Sequence[str]) -> None:
    name = message.name
    if message.datatype not in datatypes:
        raise InvalidRequest.of(name, f"datatype {message.datatype!r:.40} is not allowed: {' or '.join(datatypes)}")
    if len(message.shape) > MAX_RANK or any(size < 0 for size in message.shape):
        shown = str(list(message.shape[: MAX_RANK + 1]))
        raise InvalidRequest.of(name, f"shape {shown} is not allowed: at most {MAX_RANK} sizes, none negative")
    for parameter in message.parameters:
        if parameter.startswith("shared_memory"):
            raise InvalidRequest.of(name, "shared memory is not built in this release: send the elements")
        raise InvalidRequest.of(name, f"there is no parameter {parameter!r:.80} of inputs", reason="UNKNOWN_PARAMETER")


def _typed(message: pb.ModelInferRequest.InferInputTensor, num_elements: int) -> tuple[Any, ...]:
    wanted = CONTENTS[message.datatype]
    for field, _ in message.contents.ListFields():
        if field.name != wanted:
            raise InvalidRequest.of(
                message.name, f"its elements are in {field.name}: those of {message.datatype} go in {wanted}"
            )
    values = getattr(message.contents, wanted)
    _check_number(message.name, len(values), num_elements)
    return tuple(values)


def _raw(message: pb.ModelInferRequest.InferInputTensor, data: bytes, num_elements: int) -> tuple[Any, ...]:
    code = FORMATS[message.datatype]
    size = struct.calcsize(code)
    if len(data) != num_elements * size:
        said = f"{len(data)} bytes: its shape and {message.datatype} mean {num_elements} times {size}"
        raise InvalidRequest.of(message.name, said)
    return struct.unpack(f"<{num_elements}{code}", data)


def _raw_bytes(name: str, data: bytes, num_elements: int) -> tuple[bytes, ...]:
    values: list[bytes] = []
    position = 0
    while position < len(data):
        if len(values) == num_elements:
            raise InvalidRequest.of(name, f"its bytes go on behind the {num_elements} elements that its shape means")
        begin = position + LENGTH.size
        if begin > len(data):
            raise InvalidRequest.of(name, f"its bytes end within the length of element {len(values)}")
        position = begin + LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise InvalidRequest.of(name, f"its bytes end within element {len(values)}")
        values.append(data[begin:position])
    _check_number(name, len(values), num_elements)
    return tuple(values)


def _check_number(name: str, given: int, meant: int) -> None:
    if given != meant:
        raise InvalidRequest.of(name, f"it has {given} elements: its shape means {meant}")


def add_output(
    response: pb.ModelInferResponse, name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]
) -> None:
    """Put an output into a response, as raw bytes. BYTES take texts."""
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    if datatype == "BYTES":
        data = b"".join(LENGTH.pack(len(element)) + element for element in (text.encode() for text in values))
    else:
        data = struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)
    response.raw_output_contents.append(data)
