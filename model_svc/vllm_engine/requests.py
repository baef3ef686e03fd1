"""Requests of the VllmEngine protocol as those of this tier. What this tier does not do is refused by name.

The protocol has no absent numbers but for temperature, max_tokens and seed: 0 stands for what vLLM takes it for, every
token for top_k and no restriction for top_p. Does not know how a request is answered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as pb

from model_svc.admission import TokenRequest
from tokenwire.constraints import Constraint, ConstraintForm
from tokenwire.errors import FieldViolation, InvalidRequest, TokenwireError, Unsupported
from tokenwire.requests import GenerationOptions, RequestContext, deadline_after, new_request_id
from tokenwire.sampling import MAX_SEED, SamplingParams, StopParams, refuse
from tokenwire.wire import call_limit_s

UNBUILT = (
    "mm_inputs", "extra_mm_inputs", "media_refs", "kv_transfer_params", "kv_transfer_params_json",
)  # fmt: skip
"""Fields of a request that ask for what this tier does not do."""

CONSTRAINTS = {
    "json_schema": ConstraintForm.JSON_SCHEMA,
    "regex": ConstraintForm.REGEX,
    "grammar": ConstraintForm.EBNF,
    "json_object": ConstraintForm.JSON_OBJECT,
    "choice": ConstraintForm.CHOICE,
}
"""The forms of structured output by their fields."""

WITHOUT_TEXT = "the model tier takes token ids: send tokenized"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request to generate."""

    request: TokenRequest
    stream: bool
    stop_strings: tuple[str, ...]
    skip_special_tokens: bool
    """Whether they are no text, in which stop strings are looked for."""


def generate_request(message: pb.GenerateRequest, call_remaining_s: float | None) -> EngineRequest:
    """A request to generate. Raises InvalidRequest, and Unsupported for what this tier does not do."""
    params = message.sampling_params
    for field, description in _unbuilt(message):
        raise _refusal(Unsupported, field, description)
    options = GenerationOptions(
        sampling=_sampling(params),
        stop=StopParams(
            max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
            stop_token_ids=tuple(params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            min_tokens=params.min_tokens,
        ),
        stop_strings=tuple(params.stop),
        num_choices=params.n or 1,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
        constraint=_constraint(params),
    )
    refuse(options.violations("sampling_params"))
    request = TokenRequest(
        context=context_of(message.request_id, call_remaining_s),
        token_ids=list(message.tokenized.input_ids),
        options=replace(options, stop_strings=()),
    )
    return EngineRequest(request, message.stream, options.stop_strings, params.skip_special_tokens)


def context_of(request_id: str, call_remaining_s: float | None) -> RequestContext:
    """Who asks, and until when. Raises InvalidRequest."""
    context = RequestContext(request_id=request_id or new_request_id())
    if call_remaining_s is not None:
        deadline_s = deadline_after(context.arrival_s, call_limit_s(call_remaining_s))
        context = RequestContext(context.request_id, deadline_s=deadline_s, arrival_s=context.arrival_s)
    refuse([FieldViolation(v.field.removeprefix("context."), v.description) for v in context.violations()])
    return context


def _sampling(params: pb.SamplingParams) -> SamplingParams:
    found: dict[str, Any] = {
        "top_k": params.top_k,
        "top_p": params.top_p or 1.0,
        "min_p": params.min_p,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "repetition_penalty": params.repetition_penalty or 1.0,
    }
    if params.HasField("temperature"):
        found["temperature"] = params.temperature
    if params.HasField("seed"):
        found["seed"] = params.seed % (MAX_SEED + 1)
    return SamplingParams(**found, logit_bias=tuple(sorted(params.logit_bias.items())))


def _unbuilt(message: pb.GenerateRequest) -> Iterator[tuple[str, str]]:
    """What is asked for and not built."""
    given = {field.name for field, _ in message.ListFields()}
    if "text" in given:
        yield "text", WITHOUT_TEXT
    yield from ((name, "not built in this release") for name in UNBUILT if name in given)
    if message.data_parallel_rank:
        yield "data_parallel_rank", f"{message.data_parallel_rank} is not there: this worker has rank 0 alone"
    if message.sampling_params.WhichOneof("constraint") == "structural_tag":
        yield "sampling_params.structural_tag", "not built in this release"
    if message.sampling_params.HasField("truncate_prompt_tokens"):
        yield "sampling_params.truncate_prompt_tokens", "not built in this release"


def _constraint(params: pb.SamplingParams) -> Constraint | None:
    """What the output must look like. It holds from the first token, whatever `grammar_from_first_token` says."""
    field = params.WhichOneof("constraint")
    if field is None:
        return None
    form = CONSTRAINTS[field]
    if form is ConstraintForm.CHOICE:
        return Constraint(form, texts=tuple(params.choice.choices))
    if form is ConstraintForm.JSON_OBJECT:
        return Constraint(form) if params.json_object else None
    return Constraint(form, getattr(params, field))


def _refusal(kind: type[TokenwireError], field: str, description: str) -> TokenwireError:
    return kind.of(field, description)


def embed_inputs(message: pb.EmbedRequest) -> list[list[int]]:
    """What to embed. Raises InvalidRequest."""
    if not message.tokenized.input_ids:
        raise _refusal(InvalidRequest, "tokenized.input_ids", "it is empty: at least one token id")
    return [list(message.tokenized.input_ids)]
