"""What one ModelInferRequest asks for, as plain values. Does not know who answers.

Raises InvalidRequest and NotFound that name what is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.kserve.model import DATATYPES, OUTPUT_DATATYPES, TEXT_INPUT, VERSION
from gateway.kserve.parameters import InferFields, fields_of, scalar_of, text_of
from gateway.kserve.tensors import Tensor, read_inputs
from tokenwire.errors import InvalidRequest, NotFound
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.requests import MAX_PRIORITY, GenerationOptions

EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
PRIORITY, TIMEOUT = "priority", "timeout"

MAX_PARAMETERS = 64
"""Of one request: more than there are names."""

LOWEST_LEVEL = 2 * MAX_PRIORITY + 1
"""Triton's levels begin with 1, the most urgent; so many have a priority here."""

SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")

OPTIONAL = {
    "return_finish_reason": "finish_reason",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_logprobs": "logprobs",
}
"""Inputs that ask for outputs."""

ROW_OUTPUTS = {"batch_index", "sequence_index"}
"""Outputs that say which text and which choice of it an answer on a stream is about, where there are several."""

LOGPROB_OUTPUTS = {"cumulative_logprob", "logprobs"}
"""Outputs that must be asked for, since they take work."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request."""

    id: str
    model: str
    """Empty: the one served."""
    texts: tuple[str, ...]
    rank: int
    """Dimensions of the texts: 1 or 2, and so are those of what is given back."""
    stream: bool
    prepend_input: bool
    """Each text begins what is given back for it."""
    fields: InferFields
    options: GenerationOptions
    outputs: frozenset[str]
    """The names wanted."""
    empty_final: bool
    """A last answer without outputs ends the request."""
    priority: int
    timeout_s: float | None

    @property
    def num_rows(self) -> int:
        """Outputs: texts times choices."""
        return len(self.texts) * self.options.num_choices


def read_request(message: pb.ModelInferRequest) -> InferRequest:
    """What it asks for. Raises InvalidRequest and NotFound."""
    refuse_version(message.model_version)
    if len(message.parameters) > MAX_PARAMETERS:
        raise InvalidRequest.of("parameters", f"{len(message.parameters)} are too many: at most {MAX_PARAMETERS}")
    parameters = {name: _value(name, parameter) for name, parameter in message.parameters.items()}
    empty_final = _flag(EMPTY_FINAL, parameters.pop(EMPTY_FINAL, False))
    priority = _priority(parameters.pop(PRIORITY, 0))
    timeout_s = _timeout(parameters.pop(TIMEOUT, 0))
    for name in SEQUENCES:
        if name in parameters:
            raise InvalidRequest.of(name, "requests do not belong together here: leave it out")
    tensors = read_inputs(message, DATATYPES)
    texts, rank = _texts(tensors)
    stream = _asked(tensors, "stream")
    fields = fields_of(message.model_name, parameters, tensors)
    outputs = _outputs(message, tensors)
    options = fields.full_options()
    if not message.outputs and stream and len(texts) * options.num_choices > 1:
        outputs |= ROW_OUTPUTS
    if options.num_choices > 1 and len(texts) > 1:
        raise InvalidRequest.of(
            "n", f"{options.num_choices} choices of {len(texts)} texts are not allowed: one text, or n of 1"
        )
    if options.logprobs is None and outputs & LOGPROB_OUTPUTS:
        options = replace(options, logprobs=0)
    return InferRequest(
        id=message.id,
        model=message.model_name,
        texts=texts,
        rank=rank,
        stream=stream,
        prepend_input=_prepend(tensors, stream),
        fields=fields,
        options=options,
        outputs=outputs,
        empty_final=empty_final,
        priority=priority,
        timeout_s=timeout_s,
    )


def refuse_version(version: str) -> None:
    """Raise NotFound for a version that is not served."""
    if version not in ("", VERSION):
        raise NotFound(f"model_version {version!r:.40} is not served here; {VERSION!r} is", reason="VERSION_NOT_FOUND")


def _value(name: str, parameter: pb.InferParameter) -> Any:
    form = parameter.WhichOneof("parameter_choice")
    if form is None:
        raise InvalidRequest.of(name, "it has no value")
    return getattr(parameter, form)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest.of(name, f"{value!r:.40} is not allowed: a bool_param")
    return value


def _priority(level: Any) -> int:
    """Triton's level as a priority of ours: 1 is the most urgent, 0 and the middle one are ordinary."""
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= LOWEST_LEVEL:
        allowed = f"0 for none, or a level from 1, the most urgent, to {LOWEST_LEVEL}"
        raise InvalidRequest.of(PRIORITY, f"{level!r:.40} is not allowed: {allowed}")
    return MAX_PRIORITY + 1 - level if level else 0


def _timeout(microseconds: Any) -> float | None:
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise InvalidRequest.of(TIMEOUT, f"{microseconds!r:.40} is not allowed: microseconds, 0 for no limit")
    return microseconds / 1e6 if microseconds else None


def _texts(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], int]:
    tensor = tensors.get(TEXT_INPUT)
    if tensor is None:
        raise InvalidRequest.of(TEXT_INPUT, "is required: the texts to go on with, BYTES of shape [n] or [n, 1]")
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or shape[0] == 0:
        raise InvalidRequest.of(TEXT_INPUT, f"shape {list(shape)} is not allowed: [n] or [n, 1], at least one text")
    return tuple(text_of(TEXT_INPUT, value) for value in tensor.values), len(shape)


def _asked(tensors: Mapping[str, Tensor], name: str) -> bool:
    return name in tensors and scalar_of(tensors[name])


def _prepend(tensors: Mapping[str, Tensor], stream: bool) -> bool:
    """As the vLLM backend has it: a whole answer begins with its input unless told otherwise, a stream never does."""
    name = "exclude_input_in_output"
    if name not in tensors:
        return not stream
    prepend = not _asked(tensors, name)
    if prepend and stream:
        raise InvalidRequest.of(name, "false is not allowed with stream: what is streamed is new")
    return prepend


def _outputs(message: pb.ModelInferRequest, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Those that are named; when none is, all but what takes work or says nothing, unless it is asked for."""
    named: set[str] = set()
    if len(message.outputs) > len(OUTPUT_DATATYPES):
        raise InvalidRequest.of("outputs", f"{len(message.outputs)} are too many: there are {len(OUTPUT_DATATYPES)}")
    for output in message.outputs:
        if output.name not in OUTPUT_DATATYPES:
            known = ", ".join(OUTPUT_DATATYPES)
            raise InvalidRequest.of("outputs", f"there is no output {output.name!r:.80}; there are {known}")
        for parameter in output.parameters:
            said = f"there is no parameter {parameter!r:.80} of outputs"
            raise InvalidRequest.of(output.name, said, reason="UNKNOWN_PARAMETER")
        named.add(output.name)
    if named:
        return frozenset(named)
    wanted = set(OUTPUT_DATATYPES) - LOGPROB_OUTPUTS - ROW_OUTPUTS
    for name, output_name in OPTIONAL.items():
        if name in tensors:
            (wanted.add if _asked(tensors, name) else wanted.discard)(output_name)
    return frozenset(wanted)
