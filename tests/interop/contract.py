"""The contract as programs in other languages load it when they run."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2

PROTOS = Path(__file__).parents[2] / "protos"
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Descriptors of the contract and of the details that errors have."""
    path = tmp_path_factory.mktemp("contract") / "contract.binpb"
    subprocess.run([BUF, "build", PROTOS, "-o", path], check=True, capture_output=True, timeout=60)
    found = FileDescriptorSet.FromString(path.read_bytes())

    def add(file: FileDescriptor) -> None:
        if file.name not in {each.name for each in found.file}:
            for needed in file.dependencies:
                add(needed)
            file.CopyToProto(found.file.add())

    add(error_details_pb2.DESCRIPTOR)
    path.write_bytes(found.SerializeToString())
    return path
