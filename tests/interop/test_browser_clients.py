"""Browsers' clients against the real stack, on the HTTP port: Connect's own, Google's for gRPC-Web, and `buf curl`."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.e2e.conftest import Stack
from tests.interop.contract import BUF, PROTOS, contract
from tests.interop.environments import node_with
from tests.interop.leavers import until_idle
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, tokenizer_pb2

__all__ = ["contract"]

pytestmark = pytest.mark.model

PROGRAM = Path(__file__).parent / "programs" / "browser_clients.cjs"
MODEL = "smollm2-135m-instruct"
PATH = "/tokenwire.v1.GenerationService/"
PACKAGES = (
    "@bufbuild/protobuf@2.17.0", "@connectrpc/connect@2.3.0", "@connectrpc/connect-node@2.3.0",
    "@connectrpc/connect-web@2.3.0", "grpc-web@2.1.1", "xhr2@0.2.1",
)  # fmt: skip
CONNECT = [
    f"{client} {form}"
    for client in ("connect-web", "connect-web grpc-web", "connect-node", "connect-node grpc-web")
    for form in ("binary", "json")
]
TIME_LIMIT_S = 240
QUESTION = "What is the capital of France?"


def greedy(max_tokens: int) -> common_pb2.GenerationOptions:
    options = common_pb2.GenerationOptions()
    options.sampling.temperature, options.stop.max_tokens = 0, max_tokens
    return options


@pytest.fixture(scope="module")
def over_grpc(stack: Stack) -> dict[str, Any]:
    """What a client of gRPC gets."""
    with grpc.insecure_channel(stack.grpc_target) as channel:
        stub = gateway_pb2_grpc.GenerationServiceStub(channel)
        chat = gateway_pb2.ChatRequest(options=greedy(8))
        chat.conversation.messages.add(role="user", content=QUESTION)
        messages = list(stub.Chat(chat))
        prompts = [gateway_pb2.Prompt(text=text) for text in ("Once upon a time", "The sea was")]
        several = list(stub.Generate(gateway_pb2.GenerateRequest(prompts=prompts, options=greedy(6))))
        tokens = stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=["Hello world"]))
    return {
        "text": "".join(each.delta.text for each in messages),
        "finish": {
            "reason": messages[-1].finish.reason, "tokens": messages[-1].finish.usage.completion_tokens,
        },
        "several": ["".join(each.delta.text for each in several if each.index == index) for index in (0, 1)],
        "ids": list(tokens.encodings[0].token_ids),
    }  # fmt: skip


@pytest.fixture(scope="module")
def told(stack: Stack, contract: Path) -> dict[str, Any]:
    node, folder = node_with("browser-clients", *PACKAGES)
    command = [node, PROGRAM, folder, stack.http_url, contract]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.extended
@pytest.mark.parametrize("client", CONNECT)
def test_connects_clients(client: str, told: dict[str, Any], over_grpc: dict[str, Any]) -> None:
    found = told[client]
    assert over_grpc.items() <= found.items()
    assert found["pieces"] > 3 and found["requestId"] and found["files"]
    assert (found["back"], found["count"], found["models"]) == ("Hello world", len(found["ids"]), [MODEL])
    for name, code, reason, field in (
        ("badStream", "InvalidArgument", "INVALID_REQUEST", "prompts"),
        ("badUnary", "InvalidArgument", "INVALID_REQUEST", "texts"),
        ("noModel", "NotFound", "MODEL_NOT_FOUND", None),
    ):
        error = found[name]
        assert (error["code"], error["reason"], error["field"]) == (code, reason, field), name
        assert error["domain"] == "tokenwire" and error["message"]
    # Browsers cannot stream to a server, and their library says so; Node's can, and is told.
    assert found["biDi"]["code"] == ("Unimplemented" if client.startswith("connect-node") else "Unknown")
    assert found["late"] == common_pb2.FINISH_REASON_DEADLINE
    assert (found["aborted"]["code"], found["seen"]) == ("Canceled", 3)


@pytest.mark.extended
@pytest.mark.parametrize("form", ["text", "binary"])
def test_googles_client(form: str, told: dict[str, Any], over_grpc: dict[str, Any]) -> None:
    found = told[f"grpc-web {form}"]
    assert (found["text"], found["ids"], found["error"]) == (over_grpc["text"], over_grpc["ids"], None)
    code, message, has_details = found["bad"]
    assert code == 3 and message.startswith("texts") and has_details
    assert found["badStream"][0] == 3 and found["badStream"][1].startswith("prompts")
    assert found["late"] == common_pb2.FINISH_REASON_DEADLINE


@pytest.mark.extended
def test_who_leaves_is_cancelled_in_the_engine(told: dict[str, Any], stack: Stack) -> None:
    assert told
    until_idle(stack)


def curl(stack: Stack, protocol: str, method: str, message: Any) -> subprocess.CompletedProcess[str]:
    command = [
        BUF, "curl", "--protocol", protocol, "--schema", PROTOS, "-d", json.dumps(message),
        f"{stack.http_url}{PATH}{method}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def objects_of(text: str) -> list[dict[str, Any]]:
    """JSON objects that stand behind one another."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        each, at = decoder.raw_decode(text, at)
        found.append(each)
    return found


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
def test_buf_curl(protocol: str, stack: Stack, over_grpc: dict[str, Any]) -> None:
    options = {"sampling": {"temperature": 0}, "stop": {"maxTokens": 8}}
    asked = {"conversation": {"messages": [{"role": "user", "content": QUESTION}]}, "options": options}
    answers = objects_of(curl(stack, protocol, "Chat", asked).stdout)
    assert "".join(each.get("delta", {}).get("text", "") for each in answers) == over_grpc["text"]
    assert answers[-1]["finish"]["usage"]["completionTokens"] == over_grpc["finish"]["tokens"]
    (models,) = objects_of(curl(stack, protocol, "ListModels", {}).stdout)
    assert [card["name"] for card in models["models"]] == [MODEL]
    for method, field in (("Tokenize", "texts"), ("Generate", "prompts")):
        refused = curl(stack, protocol, method, {})
        (error,) = objects_of(refused.stderr)
        assert refused.returncode == 3 * 8 and error["code"] == "invalid_argument", refused.stderr
        values = {each["type"]: base64.b64decode(each["value"] + "==") for each in error["details"]}
        bad = error_details_pb2.BadRequest.FromString(values["google.rpc.BadRequest"])
        assert [violation.field for violation in bad.field_violations] == [field]
        assert error_details_pb2.ErrorInfo.FromString(values["google.rpc.ErrorInfo"]).domain == "tokenwire"
