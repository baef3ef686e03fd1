"""The committed stubs and the client work on the protobuf releases that clients have. Needs the package index."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import google.protobuf
from tokenwire import client, status
from tokenwire.errors import InvalidRequest
from tokenwire.kserve import inference_pb2, inference_pb2_grpc
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc, model_pb2_grpc, tokenizer_pb2_grpc
request = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text="x")])
assert gateway_pb2.GenerateRequest.FromString(request.SerializeToString()) == request
assert isinstance(status.from_wire(status.to_wire(InvalidRequest("no"))), InvalidRequest)
assert inference_pb2.ModelInferRequest.FromString(inference_pb2.ModelInferRequest(id="x").SerializeToString()).id == "x"
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc
complete = vllm_engine_pb2.GenerateComplete(output_ids=[1, 2])
assert vllm_engine_pb2.GenerateComplete.FromString(complete.SerializeToString()) == complete
print(google.protobuf.__version__)
"""


@pytest.mark.extended
@pytest.mark.parametrize("release", ["6.*", "7.*"])
def test_stubs_and_client_load_on(release: str, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*install, f"protobuf=={release}"], check=True)
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(release.split(".")[0] + "."), run.stdout
