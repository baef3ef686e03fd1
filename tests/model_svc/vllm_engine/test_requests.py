from typing import Any

import pytest
from smg_grpc_proto import vllm_engine_pb2 as pb

from model_svc.vllm_engine.requests import context_of, embed_inputs, generate_request
from tokenwire import constraints
from tokenwire.errors import InvalidRequest, TokenwireError, Unsupported


def message(**params: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id="r", tokenized=pb.TokenizedInput(input_ids=[1, 2]), sampling_params=pb.SamplingParams(**params)
    )


def test_what_shepherd_sends() -> None:
    found = generate_request(
        message(
            temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_tokens=8, stop=["STOP"], stop_token_ids=[7],
            skip_special_tokens=True, spaces_between_special_tokens=True, n=2, seed=7, logprobs=2, min_tokens=3,
            ignore_eos=True, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={5: -1.0, 3: 2.0},
        ),
        None,
    )  # fmt: skip
    options = found.request.options
    assert found.request.context.request_id == "r" and found.request.context.deadline_s is None
    assert found.request.token_ids == [1, 2] and not found.stream
    assert found.stop_strings == ("STOP",) and found.skip_special_tokens and options.stop_strings == ()
    assert (options.sampling.temperature, options.sampling.top_p, options.sampling.seed) == (0.0, 1.0, 7)
    assert (options.sampling.presence_penalty, options.sampling.frequency_penalty) == (0.5, 0.25)
    assert options.sampling.logit_bias == ((3, 2.0), (5, -1.0))
    assert (options.stop.max_tokens, options.stop.min_tokens, options.stop.ignore_eos) == (8, 3, True)
    assert options.stop.stop_token_ids == (7,)
    assert (options.num_choices, options.logprobs, options.prompt_logprobs) == (2, 2, None)


def test_zero_is_what_vllm_takes_it_for() -> None:
    options = generate_request(message(), None).request.options
    sampling = options.sampling
    assert (sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (0, 1.0, 0.0, 1.0)
    assert sampling.temperature is None and sampling.seed is None, "these can be absent"
    assert options.stop.max_tokens is None and options.num_choices == 1


def test_a_negative_seed_is_the_bits_that_it_is() -> None:
    assert generate_request(message(seed=-1), None).request.options.sampling.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temperature": -1.0}, "sampling_params.sampling.temperature: -1.0 is not allowed"),
        ({"top_p": 1.5}, "sampling_params.sampling.top_p"),
        ({"logprobs": -1}, "sampling_params.output.logprobs: -1 is not allowed"),
        ({"logprobs": 21}, "sampling_params.output.logprobs: 21"),
        ({"prompt_logprobs": -1}, "sampling_params.output.prompt_logprobs"),
        ({"n": 1000}, "sampling_params.num_choices: 1000"),
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed"),
        ({"stop": [""]}, "stop_strings"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: .-1. is not allowed"),
        ({"stop_token_ids": list(range(100))}, "stop_token_ids"),
    ],
)
def test_bad_values_are_refused(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        generate_request(message(**params), None)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (pb.GenerateRequest(text="hi"), "text"),
        (pb.GenerateRequest(mm_inputs=pb.MultimodalInputs()), "mm_inputs"),
        (pb.GenerateRequest(extra_mm_inputs=[pb.MultimodalInputs()]), "extra_mm_inputs"),
        (pb.GenerateRequest(media_refs=pb.MediaRefs()), "media_refs"),
        (pb.GenerateRequest(kv_transfer_params=pb.KvTransferParams()), "kv_transfer_params"),
        (pb.GenerateRequest(kv_transfer_params_json="{}"), "kv_transfer_params_json"),
        (pb.GenerateRequest(data_parallel_rank=1), "data_parallel_rank"),
        (message(structural_tag="x"), "sampling_params.structural_tag"),
        (message(truncate_prompt_tokens=5), "sampling_params.truncate_prompt_tokens"),
    ],
)
def test_what_is_not_built_is_refused_by_name(given: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(Unsupported, match=f"^{field}: ") as caught:
        generate_request(given, None)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("params", "constraint"),
    [
        ({"json_schema": "{}"}, constraints.json_schema("{}")),
        ({"regex": "a+"}, constraints.regex("a+")),
        ({"grammar": "root ::= x"}, constraints.ebnf("root ::= x")),
        ({"choice": pb.ChoiceConstraint(choices=["a", "b"])}, constraints.choice("a", "b")),
        ({"json_object": True}, constraints.JSON_OBJECT),
        ({"json_object": False}, None),
        ({}, None),
    ],
)
def test_constraints(params: dict[str, Any], constraint: constraints.Constraint | None) -> None:
    assert generate_request(message(**params), None).request.options.constraint == constraint


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="constraint.choice.texts: 0 texts are not allowed"):
        generate_request(message(choice=pb.ChoiceConstraint()), None)


def test_rank_zero_is_there() -> None:
    given = message()
    given.data_parallel_rank = 0
    assert generate_request(given, None).request.token_ids == [1, 2]


def test_ids_and_time_limits() -> None:
    assert context_of("", None).request_id.startswith("req-")
    context = context_of("x", 2.0)
    assert context.deadline_s is not None and 1.5 < context.deadline_s - context.arrival_s < 2.0
    with pytest.raises(InvalidRequest, match="request_id: .* is not allowed"):
        context_of("x" * 200, None)
    with pytest.raises(TokenwireError, match="tokenized.input_ids: it is empty"):
        embed_inputs(pb.EmbedRequest())
