"""Requests and answers of the Open Inference Protocol, as a client would write and read them."""

import struct
from collections.abc import Sequence
from typing import Any

import grpc

from tokenwire.kserve import inference_pb2 as pb

FORMATS = {"UINT32": "I", "INT32": "i", "FP32": "f"}


def raw_bytes(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def infer_request(*texts: str, parameters: dict[str, Any] | None = None, **fields: Any) -> pb.ModelInferRequest:
    """A request with typed contents; `parameters` by their Python types."""
    request = pb.ModelInferRequest(**fields)
    if texts:
        add_input(request, "text_input", "BYTES", [len(texts)], [text.encode() for text in texts])
    for name, value in (parameters or {}).items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def add_input(
    request: pb.ModelInferRequest, name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]
) -> pb.ModelInferRequest:
    """Append an input with typed contents."""
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    field = {
        "BYTES": "bytes_contents", "BOOL": "bool_contents", "INT32": "int_contents", "INT64": "int64_contents",
        "UINT32": "uint_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    }[datatype]  # fmt: skip
    tensor.contents.SetInParent()
    getattr(tensor.contents, field).extend(values)
    return request


def flag(request: pb.ModelInferRequest, name: str, value: bool = True) -> pb.ModelInferRequest:
    return add_input(request, name, "BOOL", [1], [value])


def streamed(*texts: str, **fields: Any) -> pb.ModelInferRequest:
    return flag(infer_request(*texts, **fields), "stream")


def outputs_of(response: pb.ModelInferResponse) -> dict[str, list[Any]]:
    """The values of each output, read from its raw bytes."""
    found: dict[str, list[Any]] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            values: list[Any] = []
            while data:
                (length,) = struct.unpack_from("<I", data)
                values.append(data[4 : 4 + length].decode())
                data = data[4 + length :]
        else:
            code = FORMATS[output.datatype]
            values = list(struct.unpack(f"<{len(data) // 4}{code}", data))
        size = 1
        for dimension in output.shape:
            size *= dimension
        assert size == len(values), (output.name, output.shape, values)
        found[output.name] = values
    return found


def is_final(response: pb.ModelInferResponse) -> bool:
    return response.parameters["triton_final_response"].bool_param


async def ended(call: grpc.aio.StreamStreamCall, num_requests: int) -> dict[str, list[Any]]:
    """Answers by request id until so many requests have their last one; nothing may follow a last one."""
    found: dict[str, list[Any]] = {}
    finals: set[str] = set()
    while (response := await call.read()) is not grpc.aio.EOF:
        answer = response.infer_response
        assert answer.id not in finals, "something follows the last answer"
        found.setdefault(answer.id, []).append(response)
        if is_final(answer):
            finals.add(answer.id)
            if len(finals) == num_requests:
                return found
    raise AssertionError(f"the stream ended after {finals}")
