"""The programs' common manners: Ctrl-C, results that cannot be written, counts, names and help."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from benchmarks import (
    adapters,
    bench,
    compare,
    embeddings,
    engine_overhead,
    frontend,
    grammars,
    load,
    long_prompts,
    overload,
    profile,
    speculation,
    startup,
    steps,
    window,
)
from benchmarks.contenders.spec import spec_of
from benchmarks.program import STOPPED
from tests.fakes.completions_server import running_completions

ROOT = Path(compare.__file__).parent.parent
LOAD = ["--target", "127.0.0.1:1", "--concurrency", "1"]
MEASURES: list[tuple[ModuleType, list[str], str]] = [
    (compare, ["ours"], "compare"),
    (window, [], "compare"),
    (startup, [], "measure_startup"),
    (steps, [], "measure_steps"),
    (frontend, [], "measure"),
    (bench, [], "parts"),
    (load, LOAD, "run"),
]
"""A program, its arguments, and the function of it that measures."""
each_program = pytest.mark.parametrize(("program", "arguments", "measure"), MEASURES)


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def measure(*_: Any, **__: Any) -> Any:
        raise error

    return measure


@each_program
def test_control_c_is_told_in_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: ModuleType, arguments: list[str],
    measure: str,
) -> None:  # fmt: skip
    broken = raising(KeyboardInterrupt)
    found: Any = (lambda *_: {"a": broken}) if program is bench else broken
    monkeypatch.setattr(program, measure, found)
    monkeypatch.setattr(program, "wait_until_quiet", lambda say: None, raising=False)
    assert program.main(arguments) == STOPPED == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"


@pytest.mark.parametrize(
    ("program", "arguments", "measure"),
    [
        (adapters, [], "measure_adapters"), (embeddings, ["--model", "folder"], "measure_embeddings"),
        (frontend, [], "measure"), (grammars, [], "measure_grammars"), (long_prompts, [], "run"), (overload, [], "run"),
        (speculation, [], "measure_speculation"),
    ],
)  # fmt: skip
def test_what_makes_a_record_waits_for_a_quiet_machine_first(
    monkeypatch: pytest.MonkeyPatch, program: ModuleType, arguments: list[str], measure: str
) -> None:
    monkeypatch.setattr(program, measure, raising(AssertionError))
    monkeypatch.setattr(program, "wait_until_quiet", raising(KeyboardInterrupt))
    assert program.main(arguments) == STOPPED


@pytest.mark.parametrize(("program", "arguments", "measure"), [each for each in MEASURES if each[0] is not load])
def test_an_unwritable_folder_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, program: ModuleType,
    arguments: list[str], measure: str,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    if program is not bench:
        monkeypatch.setattr(program, measure, raising(AssertionError))
    with pytest.raises(SystemExit) as caught:
        program.main([*arguments, "--out", str(tmp_path / "file" / "folder")])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert line.startswith(f"python -m {program.__name__}: --out {tmp_path}") and line.endswith("Not a directory")


@pytest.mark.parametrize(
    ("program", "arguments", "option"),
    [
        (compare, ["ours"], "--rounds"), (window, [], "--rounds"), (steps, [], "--rounds"), (frontend, [], "--rounds"),
        (startup, [], "--runs"),
    ],
)  # fmt: skip
def test_no_rounds_are_refused(
    capsys: pytest.CaptureFixture[str], program: ModuleType, arguments: list[str], option: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main([*arguments, option, "0"])
    assert caught.value.code == 2 and f"argument {option}: 0: 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("program", [profile, engine_overhead, *(program for program, _, _ in MEASURES)])
def test_usage_names_the_command(capsys: pytest.CaptureFixture[str], program: ModuleType) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {program.__name__} ")


def test_the_help_of_the_suite_lists_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    told = capsys.readouterr().out
    for run, full in (("a short", False), ("the full", True)):
        assert f"parts of {run} run: {', '.join(bench.parts(full, None))}\n" in told


def test_the_help_of_make_names_the_peers_that_take_part() -> None:
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("bench: "))
    kinds = {spec_of(each).kind for part in bench.SHORT for each in part.contenders}
    assert kinds > {"ours"} and all(kind in line for kind in kinds - {"ours"})


def test_control_c_within_a_load() -> None:
    with running_completions(delay_s=30.0) as server:
        command = [sys.executable, "-m", "benchmarks.load", "--target", server.target, "--concurrency", "1"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            limit_s = time.monotonic() + 30
            while not server.bodies and time.monotonic() < limit_s:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.splitlines()[-1] == "stopped" and "Traceback" not in said


def test_control_c_within_a_comparison_stops_its_servers() -> None:
    command = [sys.executable, "-m", "benchmarks.compare", "ours:engine=mock,step_ms=200", "--concurrency", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "answers after" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and rest.splitlines()[-1] == "stopped" and "Traceback" not in rest
    assert started and not psutil.wait_procs(started, timeout=10)[1], "nothing is left behind"
