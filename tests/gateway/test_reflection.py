"""What a generic tool does: it lists the services, learns the messages and calls, from reflection and without stubs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.fakes.background import in_background
from tests.fakes.whole_stack import WholeStack, whole_stack

SERVICE = "tokenwire.v1.GenerationService"


class GenericClient:
    """Calls any method of any service by name, with JSON."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        database = ProtoReflectionDescriptorDatabase(channel)
        self.services = sorted(database.get_services())
        self._pool = DescriptorPool(database)

    def service(self, name: str) -> ServiceDescriptor:
        return self._pool.FindServiceByName(name)

    def call(self, service: str, method: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        described: MethodDescriptor = self.service(service).methods_by_name[method]
        kind, answer = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
        messages = [json_format.ParseDict(each, kind(), descriptor_pool=self._pool) for each in requests]
        streams = f"{described.client_streaming}-{described.server_streaming}"
        make = {
            "False-False": self._channel.unary_unary, "False-True": self._channel.unary_stream,
            "True-True": self._channel.stream_stream,
        }[streams]  # fmt: skip
        invoke = make(f"/{service}/{method}", kind.SerializeToString, answer.FromString)
        sent: Any = iter(messages) if described.client_streaming else messages[0]
        answered = invoke(sent, timeout=20)
        found = list(answered) if described.server_streaming else [answered]
        return [json_format.MessageToDict(each, descriptor_pool=self._pool) for each in found]


@pytest.fixture(scope="module")
def stack(trained_folder: Path) -> Iterator[WholeStack]:
    with in_background(whole_stack(trained_folder, mock_step_ms=1.0)) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: WholeStack) -> Iterator[GenericClient]:
    with grpc.insecure_channel(stack.gateway.grpc_target) as channel:
        yield GenericClient(channel)


def test_services_and_their_methods_are_listed(client: GenericClient) -> None:
    assert {SERVICE, "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(client.services)
    methods = set(client.service(SERVICE).methods_by_name)
    assert {"Generate", "Chat", "Session", "Tokenize", "Embed", "ListModels"} <= methods


def test_unary_and_streaming_calls(client: GenericClient) -> None:
    ((card,),) = (answer["models"] for answer in client.call(SERVICE, "ListModels", {}))
    (tokens,) = client.call(SERVICE, "Tokenize", {"model": card["name"], "texts": ["Hello world"]})
    assert tokens["encodings"][0]["tokenIds"]
    options = {"stop": {"maxTokens": 4, "ignoreEos": True}, "sampling": {"temperature": 0}}
    answers = client.call(SERVICE, "Generate", {"prompts": [{"text": "Once upon a time"}], "options": options})
    assert answers[-1]["finish"]["reason"] == "FINISH_REASON_LENGTH"
    assert answers[-1]["finish"]["usage"]["completionTokens"] == 4


def test_a_session(client: GenericClient) -> None:
    options = {"stop": {"maxTokens": 3, "ignoreEos": True}}
    submit = {"handle": 1, "request": {"text": "Once upon a time", "options": options}}
    frames = client.call(SERVICE, "Session", {"hello": {"protocolVersion": 1}}, {"submits": [submit]})
    assert frames[0]["hello"]["protocolVersion"] == 1
    assert [finish["handle"] for frame in frames for finish in frame.get("finishes", ())] == [1]


def test_health_through_reflection(client: GenericClient) -> None:
    assert client.call("grpc.health.v1.Health", "Check", {}) == [{"status": "SERVING"}]


def test_buf_curl(stack: WholeStack) -> None:
    buf = Path(sys.executable).parent / "buf"
    if not buf.is_file():
        pytest.skip("buf is not installed: pip install buf-bin")
    request = {
        "conversation": {"messages": [{"role": "user", "content": "Hello"}]},
        "options": {"stop": {"maxTokens": 2}},
    }
    url = f"http://{stack.gateway.grpc_target}/{SERVICE}/Chat"
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(request), url]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert '"finish"' in run.stdout
