"""What a model takes and gives in the Open Inference Protocol: the names of its inputs and outputs, and their types.

Names and types are those of Triton's vLLM backend, and of the TensorRT-LLM backend for what comes as a tensor of its
own there. Knows no values.
"""

from dataclasses import dataclass

from gateway.kserve.tensors import FORMATS
from tokenwire.kserve import inference_pb2 as pb

VERSION = "1"
"""The one that every model has here."""

PLATFORM = "tokenwire"

EXTENSIONS = ("parameters", "schedule_policy", "model_stream_infer")
"""Of the protocol: request parameters, `priority` and `timeout` among them, and decoupled streams."""

INTEGERS = tuple(name for name, code in FORMATS.items() if code in "bhiqBHIQ")
NUMBERS = ("FP32", "FP64", *INTEGERS)


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1: of any size."""
    also: tuple[str, ...] = ()
    """Other types that an input may have."""


TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"
MODEL_NAME = "model_name"

FLAGS = tuple(
    Port(name, "BOOL", (1,))
    for name in (
        "stream", "exclude_input_in_output", "return_finish_reason", "return_cumulative_logprob", "return_logprobs",
        "return_num_input_tokens", "return_num_output_tokens",
    )
)  # fmt: skip
"""Inputs that say how to answer."""

PARAMETER_TENSORS = (
    Port("max_tokens", "INT32", (1,), INTEGERS),
    Port("min_length", "INT32", (1,), INTEGERS),
    Port("min_tokens", "INT32", (1,), INTEGERS),
    Port("beam_width", "INT32", (1,), INTEGERS),
    Port("top_k", "INT32", (1,), INTEGERS),
    Port("top_p", "FP32", (1,), NUMBERS),
    Port("min_p", "FP32", (1,), NUMBERS),
    Port("temperature", "FP32", (1,), NUMBERS),
    Port("repetition_penalty", "FP32", (1,), NUMBERS),
    Port("presence_penalty", "FP32", (1,), NUMBERS),
    Port("frequency_penalty", "FP32", (1,), NUMBERS),
    Port("seed", "UINT64", (1,), INTEGERS),
    Port("random_seed", "UINT64", (1,), INTEGERS),
    Port("bad_words", "BYTES", (-1,)),
    Port("stop_words", "BYTES", (-1,)),
)
"""Inputs that are parameters of generation, as the TensorRT-LLM backend takes them."""

INPUTS = (Port(TEXT_INPUT, "BYTES", (-1,)), Port("sampling_parameters", "BYTES", (1,)), *FLAGS, *PARAMETER_TENSORS)

DATATYPES = {port.name: (port.datatype, *(other for other in port.also if other != port.datatype)) for port in INPUTS}
"""Which types each input may have."""

OUTPUTS = (
    Port(TEXT_OUTPUT, "BYTES", (-1,)),
    Port("finish_reason", "BYTES", (-1,)),
    Port("num_input_tokens", "UINT32", (-1,)),
    Port("num_output_tokens", "UINT32", (-1,)),
    Port("cumulative_logprob", "FP32", (-1,)),
    Port("logprobs", "BYTES", (-1,)),
    Port("batch_index", "INT32", (1,)),
    Port("sequence_index", "INT32", (1,)),
)

OUTPUT_DATATYPES = {port.name: port.datatype for port in OUTPUTS}


def metadata_of(model: str) -> pb.ModelMetadataResponse:
    """What a client is told of a model."""
    return pb.ModelMetadataResponse(
        name=model,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=[_tensor(port) for port in INPUTS],
        outputs=[_tensor(port) for port in OUTPUTS],
    )


def _tensor(port: Port) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=port.name, datatype=port.datatype, shape=port.shape)
