"""How to generate, from the three places where a request may say it: parameters, a JSON object, tensors.

Names are those of HTTP's fields, which are vLLM's; TensorRT-LLM's other words for them are known too. A name in two
places must mean the same in both. Texts that are numbers are read as numbers, as the vLLM backend does.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gateway.http.body import body_of, refuse_extras
from gateway.http.fields import GenerationFields
from gateway.kserve.model import PARAMETER_TENSORS
from gateway.kserve.tensors import Tensor
from tokenwire.errors import InvalidRequest
from tokenwire.requests import GenerationOptions
from tokenwire.sampling import refuse

JSON_INPUT = "sampling_parameters"
MAX_JSON_CHARS = 2**20
"""Of the object: it is read at once, and a schema in it may be a quarter of that."""

OTHER_NAMES = {
    "random_seed": "seed",
    "stop_words": "stop",
    "min_length": "min_tokens",
    "num_return_sequences": "n",
    "guided_decoding": "structured_outputs",
}
"""TensorRT-LLM's words, and an earlier one of vLLM's."""

INTEGER_NAMES = {"top_k", "seed", "n", "max_tokens", "min_tokens", "logprobs", "beam_width", "best_of"}
NUMBER_NAMES = {
    "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty",
}  # fmt: skip
FLAG_NAMES = {
    "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "truncate",
    "split_special_tokens", "speculation", "use_beam_search", "early_stopping", "detokenize",
}  # fmt: skip
JSON_NAMES = {
    "stop_token_ids", "logit_bias", "allowed_token_ids", "banned_sequences", "structured_outputs", "response_format",
}  # fmt: skip
"""Lists and objects, which a parameter carries as JSON text."""

ELSEWHERE = {
    "model": "it is model_name",
    "stream": "it is an input, BOOL",
    "priority": "it is a parameter of the request",
    "timeout": "it is a parameter of the request, in microseconds",
}
"""Fields of HTTP that have another place here."""

UNBUILT: dict[str, tuple[Any, ...]] = {
    "bad_words": (None, []),
    "beam_width": (None, 1),
    "best_of": (None, 1),
    "detokenize": (None, True),
    "early_stopping": (None, False),
    "length_penalty": (None, 1),
    "prompt_logprobs": (None,),
    "use_beam_search": (None, False),
}
"""Known to one of the backends and not built, with the values that change nothing."""

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}", re.ASCII)


class InferFields(GenerationFields):
    """How to generate."""

    logprobs: int | None = None
    """How many of the likeliest tokens beside each."""
    lora_name: str | None = None
    """An adapter of the model."""

    def full_options(self) -> GenerationOptions:
        """How to generate, checked, with what only this protocol's fields say. Raises InvalidRequest."""
        options = replace(self.options(logprobs=self.logprobs), adapter=self.lora_name or "")
        refuse(options.violations())
        return options


def fields_of(model: str, parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InferFields:
    """How to generate, checked by type. `parameters`: of the request, without those of the protocol itself.

    Raises InvalidRequest for unknown names, bad types, and a name with two meanings.
    """
    found: dict[str, Any] = {}
    for name, value in _given(parameters, tensors):
        if value is None:
            continue
        if name in ELSEWHERE:
            raise InvalidRequest.of(name, f"it does not belong among the parameters of generation: {ELSEWHERE[name]}")
        name = OTHER_NAMES.get(name, name)
        value = _read(name, value)
        if name in found and not _same(found[name], value):
            raise InvalidRequest.of(name, f"it is given twice, as {found[name]!r:.40} and as {value!r:.40}")
        found[name] = value
    fields = body_of({**found, "model": model}, InferFields)
    refuse_extras(fields, UNBUILT)
    return fields


def _given(parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    yield from parameters.items()
    if (tensor := tensors.get(JSON_INPUT)) is not None:
        yield from _json_object(text_of(JSON_INPUT, scalar_of(tensor))).items()
    for port in PARAMETER_TENSORS:
        if (tensor := tensors.get(port.name)) is None:
            continue
        if tensor.datatype == "BYTES":
            words = [text_of(port.name, value) for value in tensor.values if value]
            yield port.name, words
        else:
            yield port.name, scalar_of(tensor)


def _json_object(text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON_CHARS:
        raise InvalidRequest.of(JSON_INPUT, f"{len(text)} characters are too many: at most {MAX_JSON_CHARS}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of(JSON_INPUT, f"it is not JSON: {error}", reason="MALFORMED_JSON") from None
    if not isinstance(value, dict):
        raise InvalidRequest.of(JSON_INPUT, f"it must be a JSON object, not {text!r:.40}", reason="MALFORMED_JSON")
    return value


def scalar_of(tensor: Tensor) -> Any:
    """The one value of a tensor, which may say it once or once for each text. Raises InvalidRequest."""
    values = set(tensor.values)
    if not values:
        raise InvalidRequest.of(tensor.name, f"shape {list(tensor.shape)} holds no element: one is needed")
    if len(values) > 1:
        raise InvalidRequest.of(tensor.name, "the texts of one request share one value: send a request for each value")
    return tensor.values[0]


def text_of(name: str, value: bytes) -> str:
    """The text of one element. Raises InvalidRequest."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.of(name, f"it is not valid UTF-8: {error.reason} at byte {error.start}") from None


def _read(name: str, value: Any) -> Any:
    """A text that stands for something else as what it stands for; what cannot be read is left to be refused."""
    if not isinstance(value, str):
        return value
    if name in INTEGER_NAMES and WHOLE_NUMBER.fullmatch(value):
        return int(value)
    if name in NUMBER_NAMES:
        try:
            return float(value)
        except ValueError:
            return value
    if name in FLAG_NAMES:
        return {"true": True, "false": False}.get(value.lower(), value)
    if name in JSON_NAMES:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _same(one: Any, other: Any) -> bool:
    """Equal, but for what a 32-bit float rounds off."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return math.isclose(one, other, rel_tol=1e-6) if numbers else bool(one == other)
