"""`benchmarks.gpu --serve`: the whole stack beside the engine alone, at its smallest on a CPU; needs a GPU else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_suite.serve import APIS, QUICK, figures_of, made_tokenizer

ROOT = Path(gpu.__file__).parent.parent


@pytest.mark.extended
def test_the_stack_is_measured_beside_the_engine(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--serve", "--device", "cpu", "--quick", "--out", str(out)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    record = json.loads(out.read_text())
    assert record["what"] == gpu.WHAT_SERVE
    section = record["sections"]["serve tiny"]
    assert section["status"] == "done"
    for streams in QUICK.streams:
        engine = section[f"engine {streams}"]["tokens_per_s"]
        for api in APIS:
            found = section[f"{api} {streams}"]
            assert found["share_of_engine"] == pytest.approx(found["tokens_per_s"] / engine, rel=0.01)
            assert found["e2e_ms"]["p50"] >= found["ttft_ms"]["p50"] > 0
            assert list(found["tiers"]) == ["gateway", "tokenizer", "model"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--serve", "--only", "serve smollm2-135m", "--out", str(out)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 2 and "finds no CUDA device" in made.stdout
    assert "Traceback" not in made.stdout + made.stderr and not out.exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "SERVE_NEEDS", ("grpc", "not_there_at_all"))
    assert gpu.main(["--serve"]) == 2
    assert "not_there_at_all" in capsys.readouterr().out


def test_the_sections_fit_into_nine_minutes() -> None:
    assert sum(each.seconds for each in gpu.SERVE_SECTIONS) + len(gpu.SERVE_SECTIONS) <= 9 * 60


def test_every_id_has_a_text() -> None:
    made = made_tokenizer(600)
    assert made.get_vocab_size() == 600
    ids = made.encode("The capital of France is").ids
    assert made.decode(ids) == "The capital of France is" and all(made.decode([number]) for number in range(600))
    with pytest.raises(ValueError):
        made_tokenizer(300)


def test_no_share_without_the_engine() -> None:
    spread = {"p50": 1.0}
    found = {
        "output_tokens_per_s": 10.0, "ttft_ms": spread, "inter_token_ms": spread, "e2e_ms": spread, "tiers": {},
        "time_per_output_token_ms": spread, "client": {"share_of_a_core": 0.1}, "warnings": [],
    }  # fmt: skip
    assert figures_of(found, {"tokens_per_s": 40.0})["share_of_engine"] == 0.25
    assert "share_of_engine" not in figures_of(found, {"failed": "no memory"})
