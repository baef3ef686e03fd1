"""`make profile`: the table's arithmetic, and the whole over the mock engine with a stand-in for py-spy."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.profile import HINT, NOT_ALLOWED, reason_of, unwinds_native
from benchmarks.step_table import lines, per_step

BEFORE = {"schedule": 1.0, "prepare": 2.0, "forward": 3.0, "sample": 4.0, "wait": 5.0, "publish": 6.0}
SPENT = {"schedule": 0.1, "prepare": 0.2, "forward": 1.0, "sample": 0.4, "wait": 0.0, "publish": 0.3}
FAKE_PY_SPY = """#!/bin/sh
# Allows what ALLOWED names; writes its own arguments where a flame graph would go.
mode=$1
case "$ALLOWED:$*" in
  idle:record*gateway.svg*)
    while [ "$1" != --output ]; do shift; done
    echo '<svg' >"$2"; sleep "$4"; printf '%s' "$SAID" >&2; exit 1;;
esac
case "$ALLOWED:$*" in plain:*--native*|nothing:*) echo 'Error: Permission denied' >&2; exit 1;; esac
test "$mode" = record || exit 0
while [ "$1" != --output ]; do shift; done
echo "$*" >"$2"
sleep "$4"
"""


SAID = """py-spy> Sampling process 20 times a second for 1 seconds. Press Control-C to exit.
Error: Failed to write flamegraph
Reason: No stack counts found
Stack backtrace:
   0: anyhow::error::<impl core::convert::From<E> for anyhow::Error>::from
"""


def test_the_table_divides_by_steps_and_adds_up() -> None:
    after = {phase: BEFORE[phase] + SPENT[phase] for phase in BEFORE}
    seconds = per_step(BEFORE, after, 100)
    assert seconds == pytest.approx({phase: spent / 100 for phase, spent in SPENT.items()})
    by_name = {line.split()[0]: line.split()[1:] for line in lines(seconds, 100)[1:]}
    assert by_name["forward"] == ["10.000", "50.0", "%"]
    assert by_name["all"] == ["20.000", "100.0", "%"]
    assert by_name["schedule+prepare+publish"] == ["6.000", "30.0", "%"]
    assert by_name["100"] == ["steps"]


def test_no_steps_are_not_divided_by() -> None:
    with pytest.raises(ValueError, match="nothing to divide by"):
        per_step(BEFORE, BEFORE, 0)


@pytest.fixture
def fake_py_spy(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "py-spy"
    program.parent.mkdir()
    program.write_text(FAKE_PY_SPY)
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("allowed", "native"), [("all", True), ("plain", False)])
def test_native_frames_where_they_can_be_had(
    fake_py_spy: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, native: bool
) -> None:
    monkeypatch.setenv("ALLOWED", allowed)
    assert unwinds_native(str(fake_py_spy), 1) is native


def test_without_permission_it_says_what_to_do(fake_py_spy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED", "nothing")
    with pytest.raises(SystemExit) as caught:
        unwinds_native(str(fake_py_spy), 1)
    assert str(caught.value) == NOT_ALLOWED.format(said="Error: Permission denied")
    assert "ptrace_scope=0" in NOT_ALLOWED and "SYS_PTRACE" in NOT_ALLOWED


def test_why_py_spy_failed_in_one_line() -> None:
    assert reason_of(SAID, 1) == f"Failed to write flamegraph: No stack counts found ({HINT})"
    assert reason_of("Error: No such process\n\n   0: main\n", 1) == "No such process"
    assert reason_of("", 101) == "status 101"


def command_of(output: Path) -> list[str]:
    flags = ["--output", str(output), "--seconds", "1", "--max-tokens", "8", "--", "--engine", "mock"]
    return [sys.executable, "-m", "benchmarks.profile", *flags]


def environ_of(fake_py_spy: Path, **changed: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{fake_py_spy.parent}:{os.environ['PATH']}", **changed}


def run_profile(fake_py_spy: Path, output: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    environ = environ_of(fake_py_spy, **changed)
    return subprocess.run(command_of(output), capture_output=True, text=True, env=environ, timeout=60)


def test_control_c_ends_it_without_a_traceback(fake_py_spy: Path, tmp_path: Path) -> None:
    environ = environ_of(fake_py_spy, ALLOWED="all")
    with subprocess.Popen(command_of(tmp_path), stderr=subprocess.PIPE, text=True, env=environ) as process:
        limit_s = time.monotonic() + 40
        while not (tmp_path / "engine.svg").exists() and time.monotonic() < limit_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=40)
    assert process.returncode == 130 and said.splitlines()[-1] == "stopped" and "Traceback" not in said, said


def test_a_tier_without_samples_has_no_graph_and_says_why(fake_py_spy: Path, tmp_path: Path) -> None:
    done = run_profile(fake_py_spy, tmp_path / "profile", ALLOWED="idle", SAID=SAID)
    assert done.returncode == 1 and "anyhow" not in done.stdout + done.stderr, done.stdout + done.stderr
    names = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert names == ["engine.svg", "model_svc.svg", "steps.txt", "tokenizer_svc.svg"]
    (line,) = (line for line in done.stdout.splitlines() if "gateway" in line)
    assert "No stack counts found" in line and HINT in line


def test_the_whole_over_the_mock_engine(fake_py_spy: Path, tmp_path: Path) -> None:
    output = tmp_path / "profile"
    done = run_profile(fake_py_spy, output, ALLOWED="all")
    assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(path.name for path in output.iterdir())
    assert names == ["engine.svg", "gateway.svg", "model_svc.svg", "steps.txt", "tokenizer_svc.svg"]
    arguments = (output / "engine.svg").read_text().split()
    assert "--native" in arguments and "--gil" not in arguments
    table = (output / "steps.txt").read_text()
    assert str(output / "steps.txt") in done.stdout and table in done.stdout
    (wait,) = (float(line.split()[1]) for line in table.splitlines() if line.startswith("wait"))
    assert wait > 1.0, "a mock step takes 20 ms"
