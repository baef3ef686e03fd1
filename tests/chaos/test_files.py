"""Model files that are damaged, and disks without room: a clear end, and nothing half made."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.scenario import Record, Row
from tests.e2e.tier_processes import TierProcesses
from tests.fakes.tiny_gguf import tiny_llama, write_gguf
from tests.waiting import wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.client import Client

pytestmark = [pytest.mark.chaos, pytest.mark.model]

START_S = 120


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def random_head(data: bytes) -> bytes:
    return os.urandom(64) + data[64:]


def huge_head(data: bytes) -> bytes:
    """The length of the header says 2⁶² bytes."""
    return (1 << 62).to_bytes(8, "little") + data[8:]


def empty(data: bytes) -> bytes:
    return b""


DAMAGES = {
    "half of a model's weights is missing": truncated,
    "the head of a model's weights is random bytes": random_head,
    "the head of a model's weights says that it is 2⁶² bytes long": huge_head,
    "a model's weights are an empty file": empty,
}
REFUSED = "the tier does not start, and names the file"


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_weights_are_refused_by_the_files_name(
    model_folder: Path, tmp_path: Path, record: Record, what: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(DAMAGES[what](weights.read_bytes()))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "model_svc", "--model", str(folder), "--port", str(port), "--metrics-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    said = ended.stdout + ended.stderr
    assert ended.returncode not in (0, -6, -11), said
    assert weights.name in said and "Traceback" not in said, said
    record.rows.append(Row(what, REFUSED, f"exit status {ended.returncode}, with `{weights.name}`", None))


def test_a_damaged_tokenizer_is_refused_by_the_files_name(model_folder: Path, tmp_path: Path, record: Record) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    (port,) = free_ports(1)
    command = [
        sys.executable,
        "-m",
        "tokenizer_svc",
        "--model",
        str(folder),
        "--port",
        str(port),
        "--metrics-port",
        "0",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    said = ended.stdout + ended.stderr
    assert ended.returncode > 0 and "tokenizer.json" in said and "Traceback" not in said, said
    row = Row("a model's `tokenizer.json` is none", REFUSED, f"exit status {ended.returncode}, with its name", None)
    record.rows.append(row)


def little_room() -> None:
    """No file may grow past 64 kB: what writing to a full disk gives, EFBIG in place of ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_model_cache_without_room_is_said_and_left_clean(tmp_path: Path, record: Record) -> None:
    store = tmp_path / "store"
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    command = [sys.executable, "-m", "tokenwire.cli.main", "models", "pull", str(tmp_path / "tiny.gguf")]
    environ = {**os.environ, "TOKENWIRE_HOME": str(store)}

    def pull(before: Callable[[], None] | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=START_S, env=environ, preexec_fn=before
        )  # fmt: skip

    ended = pull(little_room)
    said = ended.stdout + ended.stderr
    assert ended.returncode > 0 and "File too large" in said and "Traceback" not in said, said
    assert not list(store.rglob("*.safetensors")), "half a model was left"
    seen = f"exit status {ended.returncode}, no weights left; the next one, with room, is whole"
    ended = pull(None)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(store.rglob("*.safetensors"))
    expected = "the pull ends and says so, nothing half made stays"
    record.rows.append(Row("no room for a model in the cache", expected, seen, None))


def test_a_log_without_room_stops_nobody(model_folder: Path, tmp_path: Path, record: Record) -> None:
    ports = free_ports(4)
    model, tokenizer, gateway, http = map(str, ports)
    common = ("--metrics-port", "0")
    with TierProcesses(tmp_path, log=Path("/dev/full")) as tiers:
        tiers.start("model_svc", *common, "--port", model, "--model", str(model_folder), "--engine", "mock")
        tiers.start("tokenizer_svc", *common, "--port", tokenizer, "--model", str(model_folder),
                    "--model-targets", f"127.0.0.1:{model}")  # fmt: skip
        tiers.start("gateway", *common, "--port", gateway, "--http-port", http,
                    "--tokenizer-targets", f"127.0.0.1:{tokenizer}")  # fmt: skip
        for port in (model, tokenizer, gateway):
            wait_until_serving(f"127.0.0.1:{port}")
        with Client(f"127.0.0.1:{gateway}") as client:
            assert client.generate("Hello", max_tokens=3, ignore_eos=True).outputs()[0].terminal.error is None
    expected = "every tier starts and serves"
    record.rows.append(Row("no room for the logs of every tier", expected, "all started, a request in full", None))
