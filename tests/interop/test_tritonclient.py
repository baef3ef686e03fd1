"""NVIDIA's own client of the Open Inference Protocol against the real stack, in its own environment."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.conftest import Stack
from tests.interop.environments import python_with
from tokenwire.client import Client
from tokenwire.kserve import inference_pb2
from tokenwire.v1 import model_pb2, model_pb2_grpc

pytestmark = [pytest.mark.model, pytest.mark.extended]

PROGRAM = Path(__file__).parent / "programs" / "triton.py"
MODEL = "smollm2-135m-instruct"
PROMPTS = ["Once upon a time", "The sea was", "1 2 3 4 5 6", "Water boils at"]
TIME_LIMIT_S = 240


@pytest.fixture(scope="module")
def expected(stack: Stack) -> list[str]:
    """What our own client is told."""
    with Client(stack.grpc_target) as client:
        return [client.generate(prompt, temperature=0, max_tokens=8).text() for prompt in PROMPTS]


@pytest.fixture(scope="module")
def told(stack: Stack) -> dict[str, Any]:
    python = python_with("triton", "tritonclient[grpc]==2.73.0", "protobuf<7")
    messages = [name for name in inference_pb2.DESCRIPTOR.message_types_by_name if "." not in name]
    command = [python, PROGRAM, stack.grpc_target, MODEL, *messages]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_what_is_there(told: dict[str, Any]) -> None:
    about = told["about"]
    assert about["live"] and about["ready"] and about["model ready"] and about["version ready"]
    assert not about["other ready"]
    assert about["server"][0] == "tokenwire" and "parameters" in about["server"][1]
    assert about["inputs"]["text_input"] == ["BYTES", [-1]] and about["inputs"]["sampling_parameters"][0] == "BYTES"
    assert about["outputs"]["text_output"] == "BYTES" and about["versions"] == ["1"]


def test_infer(told: dict[str, Any], expected: list[str]) -> None:
    found = told["infer"]
    assert found["one"] == found["by parameters"] == [expected[0]] and found["id"] == "7"
    assert found["prepended"] == [PROMPTS[0] + expected[0]]
    assert found["batch"] == expected and found["batch shape"] == [4, 1] and found["batch outputs"] == ["text_output"]
    assert found["finish_reason"] == ["length"] and found["num_output_tokens"] == [8]
    assert found["num_input_tokens"][0] > 0
    assert found["stopped"] == [" 7 8 ", "stop"]
    assert found["logprobs"] == [8, 2] and abs(found["cumulative"]) < 1e-3
    assert found["seeded"] and found["choice"][0] in ("one", "two")


def test_stream(told: dict[str, Any], expected: list[str]) -> None:
    found = told["stream"]
    assert found["texts"] == {str(number): expected[number % 4] for number in range(24)}
    assert found["most pieces"] > 1 and found["empty finals"] == 12 and found["interleaved"]
    assert len(found["errors"]) == 2 and all("odd: there is no such field" in error for error in found["errors"])


def test_the_vllm_backends_sample_client(told: dict[str, Any], expected: list[str]) -> None:
    assert told["sample"] == expected


def test_errors(told: dict[str, Any]) -> None:
    found = told["errors"]
    for name in ("unknown parameter", "bad value", "no text", "shape", "datatype", "not JSON", "too long"):
        assert found[name][0] == "StatusCode.INVALID_ARGUMENT", (name, found[name])
    for name in ("unknown model", "unknown version", "metadata"):
        assert found[name][0] == "StatusCode.NOT_FOUND", (name, found[name])
    for name in ("deadline", "timeout"):
        assert found[name][0] == "StatusCode.DEADLINE_EXCEEDED", (name, found[name])


def test_a_client_that_leaves_is_cancelled_in_the_engine(told: dict[str, Any], stack: Stack) -> None:
    assert told["cancel"]["first"] and set(told["cancel"]["ends"]) <= {"StatusCode.CANCELLED"}
    with grpc.insecure_channel(stack.model_target) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        ends_s = time.monotonic() + 10
        while (load := stub.GetLoad(model_pb2.GetLoadRequest()).load).running + load.queued:
            assert time.monotonic() < ends_s, load
            time.sleep(0.05)


def test_our_messages_are_theirs(told: dict[str, Any]) -> None:
    """Names, numbers and types."""
    ours: dict[str, Any] = {}
    pending = list(inference_pb2.DESCRIPTOR.message_types_by_name.values())
    while pending:
        message = pending.pop()
        if message.full_name in ours:
            continue
        ours[message.full_name] = sorted(
            [field.number, field.name, field.type, field.message_type.full_name if field.message_type else ""]
            for field in message.fields
        )
        pending += [field.message_type for field in message.fields if field.message_type]
    assert ours == told["descriptors"] and len(ours) > 15
