import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kserve.tensors import add_output, read_inputs
from tests.fakes.inference import add_input, outputs_of, raw_bytes
from tokenwire.errors import InvalidRequest
from tokenwire.kserve import inference_pb2 as pb

KNOWN = {
    "a": ("BYTES", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64"),
    "b": ("BOOL",),
}  # fmt: skip


def raw_request(datatype: str, shape: list[int], data: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(raw_input_contents=[data])
    request.inputs.add(name="a", datatype=datatype, shape=shape)
    return request


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BYTES", [b"one", b"", b"\xff\x00"]),
        ("BOOL", [True, False, True]),
        ("INT32", [-5, 0, 2**31 - 1]),
        ("INT64", [-(2**63), 0, 1]),
        ("UINT32", [0, 1, 2**32 - 1]),
        ("UINT64", [0, 1, 2**64 - 1]),
        ("FP32", [0.5, -1.0, 0.0]),
        ("FP64", [0.1, -1e300, 0.0]),
    ],
)
def test_both_forms_mean_the_same(datatype: str, values: list) -> None:
    codes = {"BOOL": "?", "INT32": "i", "INT64": "q", "UINT32": "I", "UINT64": "Q", "FP32": "f", "FP64": "d"}
    data = raw_bytes(*values) if datatype == "BYTES" else struct.pack(f"<3{codes[datatype]}", *values)
    typed = read_inputs(add_input(pb.ModelInferRequest(), "a", datatype, [3, 1], values), KNOWN)["a"]
    raw = read_inputs(raw_request(datatype, [3, 1], data), KNOWN)["a"]
    assert typed == raw
    assert typed.shape == (3, 1) and list(typed.values) == values


@pytest.mark.parametrize(("datatype", "code"), [("INT8", "b"), ("INT16", "h"), ("UINT8", "B"), ("UINT16", "H")])
def test_small_numbers(datatype: str, code: str) -> None:
    raw = read_inputs(raw_request(datatype, [2], struct.pack(f"<2{code}", 7, 8)), KNOWN)["a"]
    assert raw.values == (7, 8)
    typed = pb.ModelInferRequest()
    contents = typed.inputs.add(name="a", datatype=datatype, shape=[1]).contents
    (contents.int_contents if datatype.startswith("INT") else contents.uint_contents).append(9)
    assert read_inputs(typed, KNOWN)["a"].values == (9,)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (add_input(pb.ModelInferRequest(), "a", "BYTES", [2], [b"x"]), "a: it has 1 elements: its shape means 2"),
        (add_input(pb.ModelInferRequest(), "b", "INT32", [1], [1]), "b: datatype 'INT32' is not allowed: BOOL"),
        (raw_request("FP16", [1], b"xx"), "a: datatype 'FP16' is not allowed: BYTES or BOOL"),
        (raw_request("BYTES", [-1], b""), r"a: shape \[-1\] is not allowed"),
        (raw_request("BYTES", [1, 1, 1, 1, 1], b""), r"a: shape .* is not allowed: at most 4 sizes"),
        (raw_request("BYTES", [2**62, 2**62], raw_bytes(b"x")), r"a: shape .* is not allowed: at most 4096 elements"),
        (raw_request("INT32", [4097], bytes(4 * 4097)), r"a: shape \[4097\] is not allowed: at most 4096 elements"),
        (raw_request("BYTES", [1], raw_bytes(b"x") * 1000), "a: its bytes go on behind the 1 elements"),
        (raw_request("INT32", [1], b"abc"), "a: 3 bytes: its shape and INT32 mean 1 times 4"),
        (raw_request("BYTES", [1], b"\x01\x00"), "a: its bytes end within the length of element 0"),
        (raw_request("BYTES", [1], b"\xff\xff\xff\xffx"), "a: its bytes end within element 0"),
        (raw_request("BYTES", [1], raw_bytes(b"x") + b"\x09"), "a: its bytes go on behind"),
        (raw_request("BYTES", [2], raw_bytes(b"x") + b"\x09\x00\x00\x00y"), "a: its bytes end within element 1"),
        (raw_request("BYTES", [], b""), "a: it has 0 elements: its shape means 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(request_: pb.ModelInferRequest, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        read_inputs(request_, KNOWN)
    assert caught.value.violations[0].field in ("a", "b")


def test_unknown_and_doubled_inputs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"inputs\[0\]: there is no input 'c'; there are a, b"):
        read_inputs(add_input(pb.ModelInferRequest(), "c", "BOOL", [1], [True]), KNOWN)
    twice = add_input(add_input(pb.ModelInferRequest(), "b", "BOOL", [1], [True]), "b", "BOOL", [1], [True])
    with pytest.raises(InvalidRequest, match="b: it is given twice"):
        read_inputs(twice, KNOWN)


def test_raw_and_typed_do_not_mix() -> None:
    request = add_input(pb.ModelInferRequest(), "a", "BYTES", [1], [b"x"])
    request.raw_input_contents.append(raw_bytes(b"x"))
    with pytest.raises(InvalidRequest, match="a: it has contents while raw_input_contents is used"):
        read_inputs(request, KNOWN)
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidRequest, match="raw_input_contents: 2 entries for 1 inputs"):
        read_inputs(request, KNOWN)
    wrong = add_input(pb.ModelInferRequest(), "a", "BYTES", [1], [b"x"])
    wrong.inputs[0].contents.bool_contents.append(True)
    with pytest.raises(InvalidRequest, match="a: its elements are in bool_contents: those of BYTES go in bytes_conten"):
        read_inputs(wrong, KNOWN)


def test_parameters_of_inputs_are_refused() -> None:
    request = add_input(pb.ModelInferRequest(), "a", "BYTES", [1], [b"x"])
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidRequest, match="a: shared memory is not built"):
        read_inputs(request, KNOWN)
    del request.inputs[0].parameters["shared_memory_region"]
    request.inputs[0].parameters["odd"].int64_param = 1
    with pytest.raises(InvalidRequest, match="a: there is no parameter 'odd' of inputs"):
        read_inputs(request, KNOWN)


@given(st.binary(max_size=40), st.lists(st.integers(-2, 2**40), max_size=5), st.sampled_from([*KNOWN["a"], "", "FP16"]))
def test_no_bytes_and_no_shape_do_more_than_refuse(data: bytes, shape: list[int], datatype: str) -> None:
    try:
        tensor = read_inputs(raw_request(datatype, shape, data), KNOWN)["a"]
    except InvalidRequest:
        return
    size = 1
    for dimension in shape:
        size *= dimension
    assert len(tensor.values) == size


def test_outputs_are_read_back() -> None:
    response = pb.ModelInferResponse()
    add_output(response, "t", "BYTES", [2, 1], ["ä", ""])
    add_output(response, "n", "UINT32", [2], [1, 2**32 - 1])
    add_output(response, "f", "FP32", [1], [-0.5])
    assert outputs_of(response) == {"t": ["ä", ""], "n": [1, 2**32 - 1], "f": [-0.5]}
