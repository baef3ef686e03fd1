"""The test vectors are those of the contract, say what they mean to say, and the Python client reads them."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format

from scripts.vectors import FOLDER, drift, vectors
from tests.fakes.vectors import check_vectors

ROOT = Path(__file__).parent.parent


def test_what_is_committed_is_current() -> None:
    assert drift() == []


def test_bytes_and_json_are_the_same_messages() -> None:
    index = json.loads((FOLDER / "index.json").read_text())
    assert [entry["name"] for entry in index] == [name for name, _, _ in vectors()]
    for (name, shows, message), entry in zip(vectors(), index, strict=True):
        assert entry == {"name": name, "message": message.DESCRIPTOR.full_name, "shows": shows}
        assert type(message).FromString((FOLDER / f"{name}.binpb").read_bytes()) == message
        assert json_format.Parse((FOLDER / f"{name}.json").read_text(), type(message)()) == message


def test_zero_and_absent_are_told_apart() -> None:
    by_name = {name: message for name, _, message in vectors()}
    zeros, absent = by_name["submit-zeros"].submits[0], by_name["submit-absent"].submits[0]
    assert zeros.HasField("initial_credit") and not absent.HasField("initial_credit")
    assert zeros.request.options.sampling.HasField("temperature")
    assert by_name["finishes"].finishes[0].WhichOneof("matched") == "stop_token_id"


def test_the_python_client_reads_them() -> None:
    check_vectors([sys.executable, ROOT / "clients" / "python" / "conformance.py"])
