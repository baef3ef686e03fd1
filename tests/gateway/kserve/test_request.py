import json
from typing import Any

import pytest

from gateway.kserve.request import InferRequest, read_request
from tests.fakes.inference import add_input, flag, infer_request, streamed
from tokenwire import constraints
from tokenwire.errors import InvalidRequest, NotFound
from tokenwire.kserve import inference_pb2 as pb


def with_json(parameters: Any, request: pb.ModelInferRequest | None = None) -> pb.ModelInferRequest:
    text = parameters if isinstance(parameters, bytes) else json.dumps(parameters).encode()
    return add_input(request or infer_request("a"), "sampling_parameters", "BYTES", [1], [text])


def read(*texts: str, **parameters: Any) -> InferRequest:
    return read_request(infer_request(*texts, parameters=parameters))


def test_a_plain_request() -> None:
    request = read_request(infer_request("one", id="7", model_name="m"))
    assert (request.id, request.model, request.texts, request.rank) == ("7", "m", ("one",), 1)
    assert not request.stream and request.prepend_input and not request.empty_final
    assert request.outputs == {"text_output", "finish_reason", "num_input_tokens", "num_output_tokens"}
    assert request.options.sampling.temperature is None and request.options.logprobs is None
    assert (request.priority, request.timeout_s) == (0, None)


def test_parameters_json_and_tensors_say_the_same() -> None:
    """In the words of each of the three, values as texts included."""
    words = {"temperature": 0.5, "top_k": 3, "top_p": 0.25, "seed": 9, "max_tokens": 5, "stop": "x", "ignore_eos": True}
    as_parameters = read("a", **words)
    as_json = read_request(with_json(words))
    as_texts = read_request(with_json({name: str(value) for name, value in words.items()}))
    tensors = infer_request("a")
    add_input(tensors, "temperature", "FP32", [1], [0.5])
    add_input(tensors, "top_k", "INT32", [1, 1], [3])
    add_input(tensors, "top_p", "FP32", [1], [0.25])
    add_input(tensors, "random_seed", "UINT64", [1], [9])
    add_input(tensors, "max_tokens", "INT32", [1], [5])
    add_input(tensors, "stop_words", "BYTES", [1, 2], [b"x", b""])
    as_tensors = read_request(with_json({"ignore_eos": True}, tensors))
    assert as_parameters.options == as_json.options == as_texts.options == as_tensors.options
    options = as_json.options
    assert (options.sampling.temperature, options.sampling.top_k, options.sampling.seed) == (0.5, 3, 9)
    assert (options.stop.max_tokens, options.stop.ignore_eos, options.stop_strings) == (5, True, ("x",))


def test_the_whole_set_of_the_vllm_backends_sample_client() -> None:
    """Which sends its parameters twice, as texts."""
    sampling = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "100"}
    request = with_json(sampling, streamed("a", parameters=sampling))
    request.outputs.add(name="text_output")
    found = read_request(request)
    assert (found.options.sampling.temperature, found.options.sampling.top_p) == (0.1, 0.95)
    assert found.options.stop.max_tokens == 100 and found.outputs == {"text_output"}


def test_lists_come_as_json_in_parameters() -> None:
    found = read("a", stop_token_ids="[1, 2]", logit_bias='{"5": -1.5}').options
    assert found.stop.stop_token_ids == (1, 2) and found.sampling.logit_bias == ((5, -1.5),)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"temprature": 1.0}, "temprature: there is no such field"),
        ({"temperature": "hot"}, "temperature: 'hot' is not allowed"),
        ({"temperature": -1.0}, "temperature: -1.0 is not allowed"),
        ({"top_p": "nan"}, "top_p: nan is not allowed"),
        ({"max_tokens": 1.5}, "max_tokens: 1.5 is not allowed"),
        ({"max_tokens": True}, "max_tokens: True is not allowed"),
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed"),
        ({"top_k": "9" * 30}, "top_k: '9+' is not allowed"),
        ({"n": 0}, "num_choices|n: 0 is not allowed"),
        ({"best_of": 2}, "best_of: is not built"),
        ({"use_beam_search": True}, "use_beam_search: is not built"),
        ({"lora_name": "no/good\n"}, "adapter: .* is not allowed"),
        ({"structured_outputs": "{}"}, "structured_outputs: 0 forms are not allowed"),
        ({"structured_outputs": "{"}, "structured_outputs: '.' is not allowed"),
        ({"structured_outputs": "[1]"}, "structured_outputs: .1. is not allowed"),
        ({"structured_outputs": '{"regex": "a", "choice": ["b"]}'}, "structured_outputs: 2 forms are not allowed"),
        ({"structured_outputs": '{"odd": 1}'}, "structured_outputs.odd: there is no such field"),
        ({"structured_outputs": '{"regex": 5}'}, "structured_outputs.regex: 5 is not allowed"),
        ({"structured_outputs": '{"choice": []}'}, "texts: 0 texts are not allowed"),
        ({"structured_outputs": '{"regex": "a"}', "guided_decoding": '{"regex": "b"}'}, "it is given twice"),
        ({"stream": True}, "stream: it does not belong"),
        ({"model": "m"}, "model: it does not belong"),
        ({"stop_token_ids": "[1"}, "stop_token_ids: .* is not allowed"),
        ({"stop_token_ids": "[" * 5000}, "stop_token_ids: .* is not allowed"),
        ({"sequence_id": 5}, "sequence_id: requests do not belong together"),
        ({"priority": -1}, "priority: -1 is not allowed"),
        ({"priority": 202}, "priority: 202 is not allowed"),
        ({"priority": "high"}, "priority: 'high' is not allowed"),
        ({"timeout": -5}, "timeout: -5 is not allowed"),
        ({"timeout": True}, "timeout: True is not allowed"),
        ({"triton_enable_empty_final_response": 1}, "triton_enable_empty_final_response: 1 is not allowed"),
        ({"triton_other": True}, "triton_other: there is no such field"),
        ({"tenant": "t" * 300}, ""),
    ],
)
def test_bad_parameters_are_refused_by_name(parameters: dict[str, Any], said: str) -> None:
    if not said:
        assert read("a", **parameters).fields.tenant == "t" * 300  # refused with the request's context
        return
    with pytest.raises(InvalidRequest, match=said):
        read("a", **parameters)


@pytest.mark.parametrize(
    "neutral",
    [
        {"best_of": 1, "beam_width": 1, "length_penalty": 1.0, "use_beam_search": False, "detokenize": True},
        {"temperature": None, "stop": None, "lora_name": None},
    ],
)
def test_what_changes_nothing_is_accepted(neutral: dict[str, Any]) -> None:
    assert read_request(with_json(neutral)).options == read("a").options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "sampling_parameters: it is not JSON"),
        (b"[1]", "sampling_parameters: it must be a JSON object, not '.1.'"),
        (b"\xff{}", "sampling_parameters: it is not valid UTF-8: invalid start byte at byte 0"),
        (b"[" * 100_000, "sampling_parameters: it is not JSON"),
        (b'{"temperature": NaN}', "temperature: nan is not allowed"),
        (b'{"stop": 5}', "stop: 5 is not allowed"),
        (b'{"max_tokens": {"a": 1}}', "max_tokens: "),
        (b" " * (2**20 + 1), "sampling_parameters: 1048577 characters are too many"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "sampling_parameters: it is not JSON"),
    ],
)
def test_bad_json_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_request(with_json(text))


def test_more_than_there_can_be_is_refused_unread() -> None:
    with pytest.raises(InvalidRequest, match="parameters: 65 are too many: at most 64"):
        read("a", **{f"p{number}": 1 for number in range(65)})
    request = infer_request("a")
    for _ in range(9):
        request.outputs.add(name="text_output")
    with pytest.raises(InvalidRequest, match="outputs: 9 are too many: there are 8"):
        read_request(request)


def test_two_meanings_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens: it is given twice, as 5 and as 6"):
        read_request(with_json({"max_tokens": 6}, infer_request("a", parameters={"max_tokens": 5})))
    with pytest.raises(InvalidRequest, match="seed: it is given twice"):
        read_request(add_input(with_json({"seed": 1}), "random_seed", "UINT64", [1], [2]))
    rounded = add_input(with_json({"top_p": 0.95}), "top_p", "FP32", [1], [0.95])
    assert read_request(rounded).options.sampling.top_p == pytest.approx(0.95)


def test_texts_of_a_request_share_their_parameters() -> None:
    request = add_input(infer_request("a", "b"), "max_tokens", "INT32", [2, 1], [5, 5])
    assert read_request(request).options.stop.max_tokens == 5
    request = add_input(infer_request("a", "b"), "max_tokens", "INT32", [2, 1], [5, 6])
    with pytest.raises(InvalidRequest, match="max_tokens: the texts of one request share one value"):
        read_request(request)
    with pytest.raises(InvalidRequest, match=r"max_tokens: shape \[0\] holds no element"):
        read_request(add_input(infer_request("a"), "max_tokens", "INT32", [0], []))


@pytest.mark.parametrize(
    ("shape", "values", "said"),
    [
        ([0], [], r"shape \[0\] is not allowed"),
        ([1, 2], [b"a", b"b"], r"shape \[1, 2\] is not allowed: \[n\] or \[n, 1\]"),
        ([1, 1, 1], [b"a"], r"shape \[1, 1, 1\] is not allowed"),
        ([], [b"a"], r"shape \[\] is not allowed"),
        ([2], [b"a", b"\xff"], "text_input: it is not valid UTF-8: invalid start byte at byte 0"),
    ],
)
def test_bad_texts_are_refused(shape: list[int], values: list[bytes], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_request(add_input(pb.ModelInferRequest(), "text_input", "BYTES", shape, values))


def test_a_request_without_texts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="text_input: is required"):
        read_request(infer_request())


def test_the_input_begins_a_whole_answer_unless_told_otherwise() -> None:
    assert read_request(infer_request("a")).prepend_input
    assert not read_request(flag(infer_request("a"), "exclude_input_in_output")).prepend_input
    assert not read_request(streamed("a")).prepend_input
    with pytest.raises(InvalidRequest, match="exclude_input_in_output: false is not allowed with stream"):
        read_request(flag(streamed("a"), "exclude_input_in_output", False))


def test_outputs_that_are_wanted() -> None:
    assert "logprobs" not in read("a").outputs
    asked = read_request(flag(infer_request("a"), "return_logprobs"))
    assert "logprobs" in asked.outputs and asked.options.logprobs == 0
    assert "finish_reason" not in read_request(flag(infer_request("a"), "return_finish_reason", False)).outputs
    named = infer_request("a")
    named.outputs.add(name="cumulative_logprob")
    assert read_request(named).outputs == {"cumulative_logprob"} and read_request(named).options.logprobs == 0
    assert {"batch_index", "sequence_index"} <= read_request(streamed("a", "b")).outputs
    named.outputs.add(name="odd")
    with pytest.raises(InvalidRequest, match="outputs: there is no output 'odd'; there are text_output"):
        read_request(named)
    classified = infer_request("a")
    classified.outputs.add(name="text_output").parameters["classification"].int64_param = 2
    with pytest.raises(InvalidRequest, match="text_output: there is no parameter 'classification' of outputs"):
        read_request(classified)


def test_priority_timeout_and_version() -> None:
    assert read("a", priority=1).priority == 100 and read("a", priority=201).priority == -100
    assert read("a", priority=101).priority == read("a", priority=0).priority == 0
    assert read("a", timeout=1_500_000).timeout_s == 1.5
    unsigned = infer_request("a")
    unsigned.parameters["priority"].uint64_param = 1
    assert read_request(unsigned).priority == 100
    with pytest.raises(NotFound, match="model_version '2' is not served here; '1' is"):
        read_request(infer_request("a", model_version="2"))
    empty = infer_request("a")
    empty.parameters["seed"].SetInParent()
    with pytest.raises(InvalidRequest, match="seed: it has no value"):
        read_request(empty)


@pytest.mark.parametrize(
    ("given", "constraint"),
    [
        ({"json": {"type": "object"}}, constraints.json_schema('{"type": "object"}')),
        ({"json": '{"type": "object"}', "regex": None}, constraints.json_schema('{"type": "object"}')),
        ({"regex": "a+"}, constraints.regex("a+")),
        ({"choice": ["a", "b"]}, constraints.choice("a", "b")),
        ({"grammar": "root ::= x"}, constraints.ebnf("root ::= x")),
        ({"json_object": True, "disable_any_whitespace": False}, constraints.JSON_OBJECT),
    ],
)
def test_structured_outputs(given: dict[str, Any], constraint: constraints.Constraint) -> None:
    for name in ("structured_outputs", "guided_decoding"):
        assert read_request(with_json({name: given})).options.constraint == constraint
        assert read("a", **{name: json.dumps(given)}).options.constraint == constraint


def test_an_adapter() -> None:
    assert read("a", lora_name="poet").options.adapter == "poet"


def test_choices_of_several_texts_are_refused() -> None:
    assert read("a", n=3).num_rows == 3
    with pytest.raises(InvalidRequest, match="n: 2 choices of 2 texts are not allowed"):
        read("a", "b", n=2)


def test_words_that_are_not_built_are_refused_unless_empty() -> None:
    assert read_request(add_input(infer_request("a"), "bad_words", "BYTES", [1], [b""])).options == read("a").options
    with pytest.raises(InvalidRequest, match="bad_words: is not built"):
        read_request(add_input(infer_request("a"), "bad_words", "BYTES", [1], [b"x"]))
