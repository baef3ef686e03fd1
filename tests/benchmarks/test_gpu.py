"""The GPU benchmark: that it runs where only torch and transformers are, and that what fails costs nothing else."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import gpu
from benchmarks.gpu_suite import section as section_process
from benchmarks.gpu_suite.engine_runs import VARIANTS, Scale, decode_figures, percentile
from benchmarks.gpu_suite.report import PREFIX, Report, TookTooLong, interrupted_after, sensible, tolerating
from benchmarks.gpu_suite.shapes import SHAPES, Cost, cost_of
from model_svc.model.attention import ATTENTION_NAME
from model_svc.model.loader import ready_to_run
from model_svc.nvml import GpuHealth
from model_svc.settings import EngineSettings
from tests.fakes.only_torch import only_torch

ROOT = Path(gpu.__file__).parent.parent


def test_all_of_it_runs_where_only_torch_and_transformers_are(tmp_path: Path) -> None:
    """The whole command at its smallest, every process of it without what an installation of Tokenwire brings."""
    environ = only_torch(tmp_path) | {"TOKENWIRE_HOME": str(tmp_path)}
    for module in ("grpc", "google.rpc", "llguidance", "psutil"):
        probe = subprocess.run([sys.executable, "-c", f"import {module}"], env=environ, capture_output=True)
        assert probe.returncode, "the block does not hold"
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(out)]
    made = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    record = json.loads(out.read_text())
    assert {name: section["status"] for name, section in record["sections"].items()} == {
        "ceilings": "done", "tiny": "done", "peers tiny": "done"
    }  # fmt: skip
    assert record["machine"]["cores"] and record["machine"]["torch"].startswith("2.")
    tiny = record["sections"]["tiny"]
    assert tiny["correctness"]["right"] and tiny["correctness"]["mean_logprob_difference"] < 1e-5
    assert tiny["prefill"]["share_of_matmul_peak"] > 0
    for batch in (1, 4, 8):
        decode = tiny[f"decode default batch {batch}"]
        assert decode["tokens_per_s"] > 0 and decode["share_of_read_bandwidth"] > 0
    assert tiny["poisson"]["graph_steps_share"] == tiny["poisson"]["graph_draws_share"] == 0
    assert tiny["decode overlap alone: cuda_graphs=off batch 1"]["tokens_per_s"] > 0
    assert tiny["start compile=on"]["left_out"] and tiny["start graphs alone: overlap=off"]["left_out"]
    assert tiny["poisson"]["inter_token_ms"]["p99"] >= tiny["poisson"]["inter_token_ms"]["p50"] > 0
    peers = record["sections"]["peers tiny"]
    assert {name for name, values in peers.items() if "output_tokens_per_s" in values} == {
        "tokenwire 1", "tokenwire 4", "continuous batching 4", "generate 1", "generate 4",
    }  # fmt: skip
    assert "decode default batch 8" in made.stdout


def section(
    monkeypatch: pytest.MonkeyPatch, code: str, seconds: float = 5, left_s: float = 1000, grace_s: float = 10
) -> dict[str, Any]:
    monkeypatch.setattr(gpu, "CHILD", ("-c", code))
    monkeypatch.setattr(gpu, "GRACE_S", grace_s)
    monkeypatch.setattr(gpu, "LEAST_S", 0.1)
    return gpu.run_section(gpu.Section("made up", seconds), gpu.arguments(["--device", "cpu"]), {}, left_s)


def test_a_section_that_fails_keeps_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = section(monkeypatch, f"print('{PREFIX}{{\"a\": {{\"b\": 1}}}}', flush=True); raise ValueError('no more')")
    assert found == {"a": {"b": 1}, "status": "failed", "reason": "exit status 1: ValueError: no more"}


def test_a_section_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f'import time; print(\'{PREFIX}{{"a": {{"b": 1}}}}\', flush=True); time.sleep(100)'
    began = time.monotonic()
    found = section(monkeypatch, code, seconds=1, grace_s=0.5)
    assert time.monotonic() - began < 20
    assert found["status"] == "failed" and found["reason"].startswith("stopped after") and found["a"] == {"b": 1}


def test_a_section_without_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert section(monkeypatch, "", left_s=3)["status"] == "left out"


def test_the_sections_fit_into_nine_minutes() -> None:
    assert gpu.TOTAL_S <= 9 * 60
    assert sum(each.seconds for each in gpu.SECTIONS) + len(gpu.SECTIONS) <= 9 * 60


def test_a_measurement_that_fails_is_entered_and_the_next_is_made() -> None:
    lines: list[str] = []
    report = Report(100.0, lines.append)
    with tolerating(), report.measuring("first"):
        raise RuntimeError("no memory\nat all")
    with tolerating(), report.measuring("second", needs_s=1000):
        raise AssertionError("not begun")
    with tolerating(), report.measuring("third", most_s=0.05):
        time.sleep(10)
    with tolerating(), report.measuring("fourth"):
        report.add("fourth", speed=123456.789, worst=float("nan"))
    assert report.results == {
        "first": {"failed": "RuntimeError: no memory"},
        "second": {"left_out": "100 s were left, it needs 1000"},
        "third": {"failed": "TookTooLong: given up after 0 s"},
        "fourth": {"speed": 123500.0, "worst": None},
    }
    measured = [json.loads(line.removeprefix(PREFIX)) for line in lines if line.startswith(PREFIX)]
    assert [next(iter(each)) for each in measured] == ["first", "second", "third", "fourth"]


def test_no_alarm_is_left_behind() -> None:
    with pytest.raises(TookTooLong), interrupted_after(0.02):
        time.sleep(5)
    with interrupted_after(0.02):
        pass
    time.sleep(0.05)


def test_percentiles_and_digits() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.25, 0.5, 0.99, 0.0)] == [1.0, 2.0, 4.0, 1.0]
    assert sensible({"a": (1.23456, 7), "b": "c"}) == {"a": [1.235, 7], "b": "c"}


@pytest.mark.parametrize("given", [["--only", "nonsense"], ["--only", "tiny", "--serve", "--quick"]])
def test_a_section_that_is_not_there_is_refused(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty record would take the place of the last one."""
    out = tmp_path / "results.json"
    out.write_text("the last")
    assert gpu.main([*given, "--device", "cpu", "--out", str(out)]) == 2
    there = "'serve tiny'" if "--serve" in given else "'ceilings', 'llama-3.1-8b', 'smollm2-135m', 'qwen3-0.6b', 'peers"
    assert f"--only {given[1]}: there are {there}" in capsys.readouterr().out
    assert out.read_text() == "the last"


def test_results_that_could_not_be_written_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "run_section", lambda *_: pytest.fail("a section was run"))
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "results.json"):
        assert gpu.main(["--device", "cpu", "--out", str(out)]) == 2
        assert "the results could not be written" in capsys.readouterr().out
    (tmp_path / "old").write_text("the last")
    assert gpu.why_unwritable(tmp_path / "old") is gpu.why_unwritable(tmp_path / "new" / "results.json") is None
    assert (tmp_path / "old").read_text() == "the last" and not (tmp_path / "new" / "results.json").exists()


def test_variants_are_settings_that_exist() -> None:
    assert {"attention=flash", "attention=triton", "attention=sdpa"} <= set(VARIANTS)
    assert "attention=native" not in VARIANTS, "it is the CPUs'"
    assert all(EngineSettings(**changed) for changed in VARIANTS.values())
    graphs_overlap_compile = [
        (changed.get("cuda_graphs", "auto") == "auto", changed.get("overlap", "auto") != "off", "compile" in changed)
        for name, changed in VARIANTS.items() if not {"attention", "block_size", "merge_linears"} & set(changed)
    ]  # fmt: skip
    assert sorted(graphs_overlap_compile) == [
        (False, False, False), (False, True, False), (True, False, False), (True, False, True), (True, True, False),
        (True, True, True),
    ]  # fmt: skip


def test_the_health_of_the_gpu_or_why_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a-b"))
    health = GpuHealth("580.65", "13.0", True, 0, ("power cap",), 71)
    monkeypatch.setattr(section_process, "health_of", lambda uuid: health if uuid == "a-b" else "another")
    figures = section_process.health_figures(torch.device("cuda", 0))
    assert figures["slowdowns"] == ("power cap",) and figures["temperature_c"] == 71 and figures["ecc"] is True
    monkeypatch.setattr(section_process, "health_of", lambda uuid: "no library")
    assert section_process.health_figures(torch.device("cuda", 0)) == {"not_known": "no library"}


def shape_cost(name: str) -> Cost:
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(
            SHAPES[name](), dtype=torch.bfloat16, attn_implementation=ATTENTION_NAME
        )
    return cost_of(ready_to_run(module, torch.device("meta"), torch.bfloat16))


def test_the_shapes_cost_what_the_models_do() -> None:
    """The 8B model reads 15.0 GB a token and keeps 128 KiB of it; SmolLM2 is 269 MB."""
    large, small, middle = (shape_cost(name) for name in ("llama-3.1-8b", "smollm2-135m", "qwen3-0.6b"))
    assert large.weight_bytes / 1e9 == pytest.approx(15.01, abs=0.01)
    assert large.kv_bytes_per_token == 128 * 1024
    assert large.matmul_params / 1e9 == pytest.approx(6.98, abs=0.01)
    assert small.weight_bytes / 1e6 == pytest.approx(269, abs=1)
    assert middle.weight_bytes / 1e9 == pytest.approx(1.19, abs=0.01)
    assert middle.kv_bytes_per_token == 2 * 28 * 8 * 128 * 2


def test_shares_of_bandwidth() -> None:
    cost = Cost(weight_bytes=10**9, kv_bytes_per_token=10**5, matmul_params=5 * 10**8, attention_width=1000)
    figures = decode_figures([0.001] * 2, 10, 999, cost, {"read": {"gb_per_s": 4000.0}, "copy": {"failed": "x"}})
    assert figures["gb_per_s"] == pytest.approx(2000)
    assert figures["share_of_read_bandwidth"] == pytest.approx(0.5) and figures["tokens_per_s"] == pytest.approx(10_000)
    assert "share_of_copy_bandwidth" not in figures
    assert cost.prefill_flops(100, 1000) == 2 * 100 * 5 * 10**8 + 2 * 100 * 1000 * 1000
    assert Scale().batches == (1, 8, 32, 128, 256) and Scale().context == 1024
